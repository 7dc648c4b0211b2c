import pytest


@pytest.fixture
def pets(tmp_path):
    """The name of the registered dataset of pets.py, whose files are in data/."""
    from gw_detectron.data import register_datasets

    from .pets import forgotten, write_dataset

    with forgotten("pets") as name:
        register_datasets([write_dataset(tmp_path / "data", name=name)])
        yield name

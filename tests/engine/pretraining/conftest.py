import pytest

from .commands import remove_checkpoints
from .images import draw_folder


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A folder with 24 images to train on and 12 to validate on; not to be written to."""
    return draw_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(autouse=True)
def no_checkpoints_left(tmp_path):
    """pytest keeps the folders of three sessions, and a checkpoint is 90 MB."""
    yield
    remove_checkpoints(tmp_path)

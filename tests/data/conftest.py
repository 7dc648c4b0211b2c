import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog


@pytest.fixture
def new_names_are_forgotten():
    """Datasets that a test registers are unknown after it."""
    before = set(DatasetCatalog), set(MetadataCatalog)
    yield
    for catalog, names in zip((DatasetCatalog, MetadataCatalog), before, strict=True):
        for name in set(catalog) - names:
            catalog.pop(name)

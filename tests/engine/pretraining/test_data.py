import pytest
import torch
from PIL import Image

from gw_detectron.engine.pretraining import data as images
from gw_detectron.engine.pretraining import setup
from gw_detectron.errors import UsageError

from .commands import arguments
from .images import CLASSES, draw_folder


@pytest.fixture
def own(tmp_path):
    """A folder to spoil."""
    return draw_folder(tmp_path / "own", train=2, val=1)


def config(folder, *opts):
    return setup(arguments(folder, "unused", opts=opts))


def test_a_class_is_a_folder_and_numbers_follow_the_alphabet(data):
    assert config(data).PRETRAINING.NUM_CLASSES == 3
    samples = images.images_in(config(data), "train").samples
    assert len(samples) == 24 and [label for _, label in samples] == [0] * 8 + [1] * 8 + [2] * 8
    assert samples[8][0] == str(data / "train" / CLASSES[1] / "0.png")


def test_training_batches_are_random_square_crops_without_end(data):
    batches = iter(images.build_train_loader(config(data)))
    seen = [next(batches) for _ in range(7)]  # more than two epochs
    for batch in seen:
        assert batch["image"].shape == (8, 3, 32, 32) and batch["image"].dtype == torch.uint8
    epoch = torch.cat([batch["label"] for batch in seen[:3]])
    assert epoch.bincount().tolist() == [8, 8, 8]
    assert epoch.tolist() != sorted(epoch.tolist())


def test_evaluation_reads_every_image_once_and_its_centre(own):
    Image.linear_gradient("L").resize((72, 36)).save(own / "val" / CLASSES[0] / "0.png")
    (batch,) = images.build_test_loader(config(own), "val")
    assert batch["label"].tolist() == [0, 1, 2] and batch["image"].shape == (3, 3, 32, 32)
    grey = batch["image"][0].int()
    assert torch.equal(grey[0], grey[1])  # a grey image becomes RGB
    # of 36 rows that rise from 0 to 255, the middle 32; of 72 columns all the same
    whole = torch.linspace(0, 255, 36)[2:-2].round()
    assert (grey[0] - whole[:, None]).abs().max() <= 8


def test_worker_processes_give_the_same_evaluation_batches(data):
    alone = list(images.build_test_loader(config(data), "val"))
    shared = list(images.build_test_loader(config(data, "DATALOADER.NUM_WORKERS", 1), "val"))
    assert len(alone) == len(shared) == 2
    for a, b in zip(alone, shared, strict=True):
        assert torch.equal(a["image"], b["image"]) and torch.equal(a["label"], b["label"])


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("spoil", ["truncated", "text"])
def test_a_file_that_is_no_image_is_one_line_that_names_it(own, workers, spoil):
    bad = own / "val" / CLASSES[2] / "0.png"
    bad.write_bytes(bad.read_bytes()[:200] if spoil == "truncated" else b"not an image")
    loader = images.build_test_loader(config(own, "DATALOADER.NUM_WORKERS", workers), "val")
    with pytest.raises(UsageError) as error:
        list(loader)
    message = str(error.value)
    assert message.startswith(f"the image {bad} can't be read: ") and "\n" not in message


def test_folders_with_different_classes_are_one_line_that_names_them(own):
    (own / "val" / "green").rename(own / "val" / "grün")
    with pytest.raises(UsageError) as error:
        config(own)
    message = str(error.value)
    assert f"{own / 'train'} and {own / 'val'} have different classes" in message
    assert message.endswith("only one has green, grün") and "\n" not in message


def test_evaluation_alone_needs_no_training_images(own, tmp_path):
    weights = tmp_path / "weights.pth"
    weights.touch()
    (own / "train").rename(own / "elsewhere")
    args = arguments(own, "unused", "--eval-only", opts=["MODEL.WEIGHTS", weights])
    assert setup(args).PRETRAINING.NUM_CLASSES == 3


def test_a_class_without_images_is_named(own):
    (own / "train" / "nothing").mkdir()
    with pytest.raises(UsageError, match="no valid file for the classes nothing.*.jpeg"):
        config(own)


@pytest.mark.parametrize("missing", ["", "train", "val"])
def test_a_missing_folder_is_named(own, missing):
    (own / missing).rename(own.parent / "elsewhere")
    with pytest.raises(UsageError, match="has not one folder of images a class") as error:
        config(own)
    assert str(own / missing) in str(error.value)


def test_the_stated_number_of_classes_is_checked(data):
    with pytest.raises(UsageError, match="NUM_CLASSES 1000: the data has 3"):
        config(data, "PRETRAINING.NUM_CLASSES", 1000)

"""From a config and weights to an exported model that was checked, and its report."""

import copy
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.detection_utils import build_augmentation
from detectron2.export import TracingAdapter
from detectron2.modeling import GeneralizedRCNN, RetinaNet, build_model
from detectron2.structures import Boxes
from torch import Tensor, nn

from .. import config
from ..checkpoint import WeightsCheckpointer, require_weights
from ..data import adapt_config, images, register_datasets
from ..data.drawing import draw_scene
from ..errors import UsageError, building
from .formats import FORMATS, Format
from .report import OUTPUTS, Detections, Report, compare, how_to_run, metadata

_ATTEMPTS = 8  # images of a dataset, or drawn ones, until the model finds something


def export(
    format: str,
    output: str,
    config_file: str,
    opts: Sequence[str] = (),
    datasets: Iterable[Sequence[str]] = (),
    image: str = "",
    trust: bool = False,
) -> Report:
    """
    Leaves in `output` the model, metadata.json and report.md.

    Args:
        format: one of FORMATS.
        output: a folder that is new or empty.
        config_file, opts, datasets, trust: as of :func:`setup`.
        image: the file of an image for the check, or "" for one of DATASETS.TEST, or a drawn one
            where that is not there.

    Raises:
        UsageError: on a mistake in any of it, or a model that can't be exported.
    """
    form = FORMATS[format]
    form.require()
    _require_empty(output)
    cfg = setup(config_file, opts, datasets, trust)
    if cfg.INPUT.FORMAT not in ("RGB", "BGR"):
        raise UsageError(f"INPUT.FORMAT {cfg.INPUT.FORMAT}: export takes RGB and BGR")
    model, stored = load_model(cfg)
    require_exportable(model)
    held_out, source, expected = find_held_out(cfg, model, image)
    side, size = form.smallest_side(model), tuple(held_out.shape[1:])
    if min(size) < side:
        raise UsageError(
            f"--format {format} takes images with sides of at least {side} pixels; {source} comes "
            f"to {size[1]} x {size[0]} with INPUT.MIN_SIZE_TEST {cfg.INPUT.MIN_SIZE_TEST}"
        )
    outputs = list(OUTPUTS)[: 3 if expected.masks is None else 4]
    path = os.path.join(output, form.file)
    found = _save_and_run(form, model, outputs, held_out, path)
    head = cfg.MODEL[config.predicting_head(cfg)]
    report = Report(
        file=path,
        held_out=source,
        size=size,
        comparison=compare(expected, found),
        run=how_to_run(cfg, form, path, outputs),
    )
    facts = {
        "sides_at_least": side,
        "classes": class_names(cfg, head.NUM_CLASSES, stored),
        "score_threshold": head.SCORE_THRESH_TEST,
    }
    report.write(output, metadata(cfg, outputs, **facts))
    return report


def setup(
    config_file: str,
    opts: Sequence[str],
    datasets: Iterable[Sequence[str]] = (),
    trust: bool = False,
) -> CfgNode:
    """
    Args:
        opts: overrides, KEY VALUE ...
        datasets: as of :func:`gw_detectron.data.register_datasets`.
        trust: see :func:`gw_detectron.config.read_config_file`.

    Returns:
        CfgNode: frozen, its device the CPU. Of DATASETS.TEST it has only what is registered here:
        where a detector is exported, the data of its training may not be.

    Raises:
        UsageError: on a mistake in any of it, or missing weights.
    """
    cfg = config.load_config(config_file, opts, trust)
    registered = register_datasets(datasets)
    cfg.DATASETS.TEST = tuple(name for name in cfg.DATASETS.TEST if name in DatasetCatalog)
    stated = config.stated_keys(config_file, opts, trust)
    adapt_config(cfg, registered, stated, eval_only=True)
    if not cfg.MODEL.WEIGHTS:
        raise UsageError("export needs trained weights: add MODEL.WEIGHTS FILE")
    require_weights(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    return cfg


def load_model(cfg: CfgNode) -> tuple[nn.Module, list[str]]:
    """
    Returns:
        (the model in inference mode, with the weights of MODEL.WEIGHTS; the classes that their file
        names, [] where it names none)

    Raises:
        UsageError: the config makes no model, or the weights are not that model's, as those of a
            backbone, or not all finite.
    """
    with building("the model"):
        model = build_model(cfg).eval()
    checkpointer = WeightsCheckpointer(model, cfg=cfg, whole=True)
    checkpointer.load(cfg.MODEL.WEIGHTS)
    parameters = dict(model.named_parameters())
    without = [name for name, value in parameters.items() if not value.isfinite().all()]
    if without:
        raise UsageError(
            f"MODEL.WEIGHTS {cfg.MODEL.WEIGHTS} has no finite values for {len(without)} of the "
            f"{len(parameters)} weights of this model, the first {without[0]}"
        )
    return model, checkpointer.stored.get("classes", [])


def class_names(cfg: CfgNode, num_classes: int, stored: Sequence[str] = ()) -> list[str] | None:
    """
    Of the config, else of the checkpoint, else of the datasets that cfg names and Detectron2 knows;
    None where none has as many.

    Args:
        stored: the checkpoint's.
    """
    datasets = [n for n in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN) if n in MetadataCatalog]
    of_datasets = (MetadataCatalog.get(name).get("thing_classes") for name in datasets)
    for names in (cfg.MODEL.GW.CLASSES, stored, *of_datasets):
        if names and len(names) == num_classes:
            return list(names)
    return None


def require_exportable(model: nn.Module) -> None:
    """Raises UsageError where model is no detector of Detectron2's for images of any size."""
    if type(model) not in (GeneralizedRCNN, RetinaNet):
        raise UsageError(
            "export takes Detectron2's Faster, Mask and Cascade R-CNN and RetinaNet; this model is "
            f"a {type(model).__name__}"
        )
    if type(model) is GeneralizedRCNN and model.proposal_generator is None:
        raise UsageError("export takes models that find their regions; this one is given them")
    if model.backbone.padding_constraints.get("square_size"):
        raise UsageError("export takes images of any size; this model's backbone takes squares")


def detect(model: nn.Module, inputs: list[dict[str, Tensor]]) -> tuple[Tensor, ...]:
    """
    What a model of Detectron2's finds in one image, as Detections.

    Raises:
        UsageError: it finds something else, too.
    """
    if isinstance(model, RetinaNet):
        found = model(inputs)[0]["instances"]
    else:  # not processed further: masks would come in the image's size
        found = model.inference(inputs, do_postprocess=False)[0]
        found = found[found.pred_boxes.nonempty()]
    fields = found.get_fields()
    more = fields.keys() - {"pred_boxes", "scores", "pred_classes", "pred_masks"}
    if more or type(found.pred_boxes) is not Boxes:
        kind = ", ".join(sorted(more)) or type(found.pred_boxes).__name__
        raise UsageError(f"export takes models of boxes and masks; this one finds {kind}")
    masks = [found.pred_masks.squeeze(1)] if "pred_masks" in fields else []
    return found.pred_boxes.tensor, found.scores, found.pred_classes, *masks


def find_held_out(cfg: CfgNode, model: nn.Module, path: str) -> tuple[Tensor, str, Detections]:
    """
    The first image in which the model finds something: that of path, else of DATASETS.TEST's first
    that can be read, else drawn ones.

    Args:
        path: of an image, or "".

    Returns:
        (image, source, detections): float32, (3, H, W), as the model takes it; in words; the
        model's own.

    Raises:
        UsageError: path can't be read, or nothing is found.
    """
    resize = T.AugmentationList(build_augmentation(cfg, is_train=False))
    sources = []
    for source, pixels in _candidates(cfg, path):
        resize(resized := T.AugInput(pixels))
        image = _tensor(resized.image)
        with torch.no_grad():
            detections = Detections(*detect(model, [{"image": image}]))
        if len(detections.scores):
            return image, source, detections
        sources.append(source)
    raise UsageError(
        f"the model finds nothing in {sources[0]}{' and others' * (len(sources) > 1)}, so that an "
        "export can't be checked there: give an image with objects, --image FILE"
    )


def _candidates(cfg: CfgNode, path: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (what it is in words, pixels)."""
    if path:
        yield path, images.read(path, cfg.INPUT.FORMAT)
        return
    for name in cfg.DATASETS.TEST:
        try:
            records = DatasetCatalog.get(name)
        except (OSError, UsageError):  # known by name, but not there
            continue
        if records and os.path.isfile(records[0]["file_name"]):
            for record in images.evenly_spread(records, _ATTEMPTS):
                file = record["file_name"]
                pixels = images.read(file, cfg.INPUT.FORMAT, record)
                yield f"{os.path.basename(file)} of {name}", pixels
            return
    for seed in range(_ATTEMPTS):
        yield f"drawn image {seed}", draw(seed, 192, 256)


def draw(seed: int, height: int, width: int) -> np.ndarray:
    """Shapes on a background, uint8, (H, W, 3)."""
    return draw_scene(np.random.default_rng(seed), height, width).image


def example(held_out: Tensor) -> Tensor:
    """A drawn image, float32, (3, H, W), neither as high nor as wide as the held-out one."""
    sizes = [(160, 224), (192, 256), (288, 320)]
    return _tensor(draw(0, *next(s for s in sizes if not set(s) & set(held_out.shape[1:]))))


def _tensor(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels.transpose(2, 0, 1).astype("float32"))


def _require_empty(folder: str) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
        if os.listdir(folder):
            raise UsageError(f"--output {folder} is not empty: name a new folder")
    except OSError as error:
        raise UsageError(f"--output {folder} can't be written to: {error.strerror}") from error


def _save_and_run(
    form: Format, model: nn.Module, outputs: Sequence[str], image: Tensor, path: str
) -> Detections:
    model = copy.deepcopy(model).requires_grad_(False)
    adapter = TracingAdapter(model, [{"image": example(image)}], detect).eval()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # Detectron2's assertions, which a trace leaves out
            form.save(adapter, outputs, path)
            return Detections(*form.load(path)(image))
    except UsageError:
        raise
    except Exception as error:  # of exporters and runtimes: any kind, at any length
        reason = str(error).strip().partition("\n")[0]
        raise UsageError(
            f"PyTorch {torch.__version__} can't export this model to {form.file}: "
            f"{type(error).__name__}: {reason}"
        ) from error

"""What evaluates which kind of dataset."""

from collections.abc import Callable

from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
    COCOEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    LVISEvaluator,
    PascalVOCDetectionEvaluator,
    SemSegEvaluator,
)

from ..errors import UsageError

# Metadata's evaluator_type -> what evaluates such a dataset, from its name and an output folder
EVALUATORS: dict[str, list[Callable[[str, str], DatasetEvaluator]]] = {
    "coco": [lambda name, folder: COCOEvaluator(name, output_dir=folder)],
    "sem_seg": [lambda name, folder: SemSegEvaluator(name, output_dir=folder)],
    "coco_panoptic_seg": [
        lambda name, folder: SemSegEvaluator(name, output_dir=folder),
        lambda name, folder: COCOEvaluator(name, output_dir=folder),
        COCOPanopticEvaluator,
    ],
    "lvis": [lambda name, folder: LVISEvaluator(name, output_dir=folder)],
    "pascal_voc": [lambda name, folder: PascalVOCDetectionEvaluator(name)],
    "cityscapes_instance": [lambda name, folder: CityscapesInstanceEvaluator(name)],
    "cityscapes_sem_seg": [lambda name, folder: CityscapesSemSegEvaluator(name)],
}


def build_evaluator(dataset_name: str, output_folder: str) -> DatasetEvaluator:
    """
    Every evaluator that Detectron2 has for a dataset of this kind, as one.

    Raises:
        UsageError: it has none.
    """
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if kind not in EVALUATORS:
        raise UsageError(
            f"dataset {dataset_name} has evaluator_type {kind}; Detectron2 evaluates "
            + ", ".join(EVALUATORS)
        )
    return DatasetEvaluators([build(dataset_name, output_folder) for build in EVALUATORS[kind]])

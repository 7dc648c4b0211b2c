"""What a run has given: pictures of its detections."""

from .detections import save_detection_sheet

__all__ = ["save_detection_sheet"]

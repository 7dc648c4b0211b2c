import numpy as np
import pytest

pytest.importorskip("detectron2")

from gw_detectron.engine.picture import Objects, class_color, draw_objects

BOXES = np.array([[10.0, 10, 40, 50], [50, 20, 70, 40]])


def test_labels_say_the_class_the_score_and_what_is_a_crowd():
    names = ["cat", "dog"]
    assert Objects(BOXES, [1, 0]).labels(names) == ["dog", "cat"]
    assert Objects(BOXES, [1, 0], scores=[0.987, 0.5]).labels(names) == ["dog 99%", "cat 50%"]
    assert Objects(BOXES, [1, 1], crowds=[False, True]).labels(names) == ["dog", "dog (crowd)"]
    assert Objects(BOXES, [1, 0]).labels(None) == ["1", "0"]


def test_neighbouring_classes_differ_in_color_and_any_number_has_one():
    colors = [class_color(index) for index in range(8)]
    distances = [np.abs(a - b).max() for i, a in enumerate(colors) for b in colors[:i]]
    assert min(distances) > 0.15
    assert class_color(1202).shape == (3,)


def test_without_objects_the_image_is_as_it_was():
    image = np.full((60, 80, 3), 90, np.uint8)
    picture = draw_objects(image, Objects(np.empty((0, 4)), []), ["cat"], width=160)
    assert picture.size == (160, 120)
    assert (np.asarray(picture) == 90).all()

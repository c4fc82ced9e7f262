"""The pictures that a run makes of itself: the same latents every time, one class a row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import nn

from biggan.sampling import standing
from biggan.sampling.figures import labelled_rows, save_png
from biggan.sampling.generate import generate


class SampleSheet:
    """Called with a generator and a path: writes a grid of `classes` rows and `columns` images.

    With more classes than rows, they are spread evenly over the ids, so that every part of the table is seen.
    """

    def __init__(self, classes: int, columns: int, standing_images: int, class_names: Sequence[str]):
        count = min(classes, len(class_names))
        self.ids = [i * len(class_names) // count for i in range(count)]
        self.names = [class_names[i] for i in self.ids]
        self.columns = columns
        self.standing_images = standing_images

    def __call__(self, generator: nn.Module, path: Path) -> None:
        was_training = generator.training
        generator.eval()
        classes = np.repeat(self.ids, self.columns)
        with standing.temporary(generator, images=min(self.standing_images, standing.usual_images(generator))):
            images = generate(generator, classes if generator.classes > 1 else classes * 0)
        generator.train(was_training)
        picture = labelled_rows(images.reshape(len(self.ids), self.columns, *images.shape[1:]), self.names)
        save_png(picture, path, {"classes": self.ids, "seed": 0, "truncation": 1.0, "statistics": "standing"})

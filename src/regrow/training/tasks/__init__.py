"""What models are trained for: how a batch becomes a loss, and how good a model is. One file for each."""

from regrow.training.tasks import classification, detection, segmentation, text_classification  # registers them
from regrow.training.tasks.task import TASKS, Task

__all__ = ["TASKS", "Task", "classification", "detection", "segmentation", "text_classification"]

"""EfficientTrain: train image models on low frequencies and weak augmentation first, for two thirds of the compute."""

from importlib.metadata import version as _version

from efficienttrain.batches import CurriculumBatches
from efficienttrain.crop import LowFreqCrop, low_freq_crop
from efficienttrain.curriculum import Curriculum, Stage, StageEpochs
from efficienttrain.embedding import resize_pos_embed
from efficienttrain.replay import ReplayBuffer
from efficienttrain.search import SearchResult, greedy_search, plus_plus_search
from efficienttrain.transforms import MagnitudeTransform, magnitude_to_timm

__all__ = [
    "Curriculum",
    "CurriculumBatches",
    "LowFreqCrop",
    "MagnitudeTransform",
    "ReplayBuffer",
    "SearchResult",
    "Stage",
    "StageEpochs",
    "__version__",
    "greedy_search",
    "low_freq_crop",
    "magnitude_to_timm",
    "plus_plus_search",
    "resize_pos_embed",
]

__version__ = _version("efficienttrain")

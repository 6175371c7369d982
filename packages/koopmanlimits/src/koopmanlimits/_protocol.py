"""scikit-learn's protocol for estimators, without scikit-learn."""

from __future__ import annotations

import inspect
from typing import Any, Self


class Estimator:
    """Parameters are the constructor's arguments, kept as given under their names."""

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The parameters of the constructor, by name."""
        return {name: getattr(self, name) for name in self._parameters()}

    def set_params(self, **params: Any) -> Self:
        """Set parameters of the constructor.

        Args:
            **params: Names and values.

        Returns:
            The estimator.

        Raises:
            ValueError: If there is no parameter of that name.
        """
        names = self._parameters()
        for name, value in params.items():
            if name not in names:
                raise ValueError(f"{name} must be one of {', '.join(names)}")
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in self.get_params().items())
        return f"{type(self).__name__}({given})"

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn, which alone calls this, wants to know."""
        from sklearn.utils import Tags, TargetTags, TransformerTags

        return Tags(
            estimator_type=None, target_tags=TargetTags(required=False), transformer_tags=TransformerTags()
        )

    def __sklearn_is_fitted__(self) -> bool:
        """Whether there are modes."""
        return hasattr(self, "modes_")

    @classmethod
    def _parameters(cls) -> tuple[str, ...]:
        return tuple(name for name in inspect.signature(cls.__init__).parameters if name != "self")

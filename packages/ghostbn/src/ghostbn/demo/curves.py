"""The plots of the evidence."""

from __future__ import annotations

from typing import Any

from ghostbn.demo.arms import ADAPTED, GHOST, SCALED, SMALL
from ghostbn.demo.training import History
from ghostbn.diffusion import DiffusionTracker


def accuracy_curves(arms: dict[str, History]) -> list[dict[str, Any]]:
    """Draw the accuracy of all arms against what they cost."""
    by_epoch = {name: {"x": history.epochs, "y": history.accuracy} for name, history in arms.items()}
    by_update = {name: {"x": history.updates, "y": history.accuracy} for name, history in arms.items()}
    y_label = "test accuracy (%)"
    return [
        _curve("Accuracy by epoch", "epoch", y_label, by_epoch, x_scale="log"),
        _curve("Accuracy by update: large batches lack updates", "update", y_label, by_update, x_scale="log"),
    ]


def walk_curves(walks: dict[str, DiffusionTracker]) -> list[dict[str, Any]]:
    """Draw the distances from initialisation and the logarithmic law fitted to each."""
    unscaled: dict[str, Any] = {}
    scaled: dict[str, Any] = {}
    for name, tracker in walks.items():
        fit = tracker.fit()
        points = {"x": tracker.steps.tolist(), "y": tracker.distances.tolist()}
        line = {"x": points["x"], "y": fit.predict(tracker.steps).tolist()}
        law = f"{fit.slope:.2f} ln t, R² {fit.r2_log:.3f} (power law {fit.r2_power:.3f}), α {fit.alpha:.1f}"
        series = {name: points, f"{name}: {law}": line}
        if "scaled" not in name:
            unscaled |= series
        if "scaled" in name or not scaled:  # the small batch is the reference in both plots
            scaled |= series
    x_label, y_label = "update t, at the high learning rate", "distance from initialisation"
    return [
        _curve("Ultra-slow diffusion, one learning rate", x_label, y_label, unscaled, x_scale="log"),
        _curve(
            "Ultra-slow diffusion, square-root scaled learning rate", x_label, y_label, scaled, x_scale="log"
        ),
    ]


def sweep_curve(swept: dict[int, History]) -> dict[str, Any]:
    """Draw the final accuracy against the ghost size."""
    sizes = sorted(swept)
    points = {"x": sizes, "y": [swept[size].accuracy[-1] for size in sizes]}
    title = "Accuracy by ghost size (the last point is ordinary batch normalisation)"
    return _curve(title, "ghost size", "test accuracy (%)", {GHOST: points}, x_scale="log")


def belief_curves(arms: dict[str, History]) -> list[dict[str, Any]]:
    """Draw what the paper's last section is about: test loss and test error need not agree."""
    shown = {name: arms[name] for name in (SMALL, SCALED, ADAPTED)}
    losses = {name: {"x": history.updates, "y": history.loss} for name, history in shown.items()}
    errors = {
        name: {"x": history.updates, "y": [100 - value for value in history.accuracy]}
        for name, history in shown.items()
    }
    return [
        _curve(
            "Test loss: may rise or stand still ...", "update", "cross-entropy (nats)", losses, x_scale="log"
        ),
        _curve("... while test error still falls", "update", "test error (%)", errors, x_scale="log"),
    ]


def _curve(title: str, x_label: str, y_label: str, series: dict[str, Any], **scales: str) -> dict[str, Any]:
    return {"title": title, "x_label": x_label, "y_label": y_label, "series": series, **scales}

"""CUDA graphs of a step's phases: the thousands of kernels of a small network are launched as one.

A small network's step takes a GPU less time than a CPU takes to launch its kernels one by one. A CUDA graph
records a phase's losses and gradients once and replays them: what varies from step to step are the tensors
that are sampled outside it, which are copied into the recorded ones, and the random numbers inside it, which
follow PyTorch's seed as they do in a step that is not recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from mimic3d.training.phases import Losses, PhaseContext

# Runs of a phase before it is recorded: libraries choose their algorithms in the first.
_WARM_UP = 3

# A phase's name and its stage.
_Key = tuple[str, int]


class Gradients(Protocol):
    """Computes a phase's gradients into its parameters' `grad` and returns what it logs."""

    def __call__(
        self, phase: Callable[..., Losses], context: PhaseContext, *inputs: Any
    ) -> dict[str, Tensor]: ...


class _Recorded:
    """A phase as a graph, with the tensors that it reads and those that it writes."""

    def __init__(
        self,
        gradients: Gradients,
        phase: Callable[..., Losses],
        context: PhaseContext,
        inputs: tuple[Any, ...],
        parameters: list[nn.Parameter],
        pool: Any,
    ) -> None:
        leaves, spec = _pytree.tree_flatten(inputs)
        self.inputs = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=pool):
            log = gradients(phase, context, *_pytree.tree_unflatten(self.inputs, spec))
        self.log = {name: value.detach() for name, value in log.items()}
        self.gradients = [(each, each.grad) for each in parameters if each.grad is not None]

    def replay(self, inputs: tuple[Any, ...]) -> dict[str, Tensor]:
        for own, leaf in zip(self.inputs, _pytree.tree_leaves(inputs), strict=True):
            if isinstance(own, Tensor):
                own.copy_(leaf)
        self.graph.replay()
        for parameter, gradient in self.gradients:
            parameter.grad = gradient
        # Copies: the next replay overwrites what this one logged.
        return {name: value.clone() for name, value in self.log.items()}


class PhaseGraphs:
    """Records each phase when it has run a few times, and replays it from then on.

    A phase that blurs is never recorded: its kernel is another in each step.
    """

    def __init__(self, gradients: Gradients, networks: list[nn.Module]) -> None:
        """
        Args:
            gradients: computes a phase's gradients without waiting for the GPU.
            networks: all that a phase may have gradients for; without any when a phase begins.
        """
        self._gradients = gradients
        self._parameters = [parameter for network in networks for parameter in network.parameters()]
        self._runs: dict[_Key, int] = {}
        self._recorded: dict[_Key, _Recorded] = {}
        # A pool ends with its last graph, so that each stage has one of its own.
        self._pools: dict[int, Any] = {}

    def __call__(
        self, phase: Callable[..., Losses], context: PhaseContext, *inputs: Any
    ) -> dict[str, Tensor]:
        """Computes a phase's gradients and log as `gradients` does, by its graph once that is recorded."""
        if context.blur_sigma > 0:
            return self._gradients(phase, context, *inputs)
        key = phase.__name__, context.stage
        if key not in self._recorded:
            self._runs[key] = self._runs.get(key, 0) + 1
            if self._runs[key] <= _WARM_UP:
                return self._gradients(phase, context, *inputs)
            # Graphs of a stage that is over are not replayed again; their memory goes to the new ones.
            self._recorded = {k: graph for k, graph in self._recorded.items() if k[1] == context.stage}
            if context.stage not in self._pools:
                self._pools = {context.stage: torch.cuda.graph_pool_handle()}
            pool = self._pools[context.stage]
            self._recorded[key] = _Recorded(self._gradients, phase, context, inputs, self._parameters, pool)
        return self._recorded[key].replay(inputs)

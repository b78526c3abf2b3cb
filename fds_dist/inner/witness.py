"""The witness: before a run trains, a few steps of it are compared with the user's own module in plain PyTorch.

On the same weights, batches and random numbers: losses, gradients, weights, buffers and validation loss of some steps;
Hessian-vector products against differences of plain gradients; and the hypergradient along one direction of λ against
differences of the plain validation loss. What differs is refused with the likely cause.

Shapes: D = weights, K = learned numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fds_dist.common.batch import Batch, Part
from fds_dist.common.faults import Fault, UserError
from fds_dist.common.flat import FlatLayout
from fds_dist.inner.culprits import calls_within, first_difference, wrong_second_derivative
from fds_dist.inner.estimate import Estimator, evaluate
from fds_dist.inner.plain_training import FixedBatches, PlainRun, PlainTraining, first_steps
from fds_dist.inner.problem import Problem
from fds_dist.inner.run import InnerRun
from fds_dist.inner.tolerance import (
    FEW,
    PATIENCE,
    STEPS,
    TOLERANCES,
    nearby,
    random_like,
    relative,
    smallest_size,
    total_norm,
)
from fds_dist.inner.training import Training
from fds_dist.tangents.methods import TrialPoint
from fds_dist.tangents.step import Pruning


class Witness:
    """Compares a problem, in its dtype, with plain PyTorch.

    Every learned hyperparameter has one bucket here, its first, so that the cost does not depend on K.

    Args:
        steps: how many, at most the run's horizon.
        exact: whether everything is computed in float64.
    """

    def __init__(self, problem: Problem, steps: int = STEPS, exact: bool = False) -> None:
        learned = tuple(replace(owner, buckets=1, init=owner.start[: owner.size]) for owner in problem.space.learned)
        self.problem = replace(problem, space=replace(problem.space, learned=learned))
        self.exact = exact
        self.tolerance = TOLERANCES[problem.low or (torch.float64 if exact else torch.float32)]
        self.values = self.problem.trial_values()
        self.steps = steps
        self.brief = first_steps(self.problem, steps, FEW * problem.accumulate, build_once=True)
        self.layout: FlatLayout = self.problem.network(0).layout

    @cached_property
    def plain(self) -> PlainTraining:
        """The user's own training on whole batches, or on few samples where that takes long."""
        whole = first_steps(self.problem, self.steps)
        return self.brief if self.brief.seconds_on(whole.train[0]) > PATIENCE else whole

    def compare_steps(self) -> float | None:
        """The largest error of a few steps, which the engine takes without tangents, as plain PyTorch does.

        Returns None where plain PyTorch's own losses explode.

        Raises:
            UserError: they differ, or differ from one time to the next.
        """
        seen, again = self.plain.run(self.values), self.plain.run(self.values)
        if seen.explodes:
            return None
        self._refuse_randomness(seen, again)
        ours, limit = self._engine_run(self.plain), self.tolerance.steps
        errors = [relative(ours.losses[0], seen.losses[0])]
        if not errors[0] <= limit:
            raise UserError(self._other_output(ours.losses[0], seen.losses[0]))
        errors.append(self._compare_vectors(ours.gradients[0], seen.gradients[0], "gradient"))
        errors.append(self._compare_updates(ours, seen))
        smallest = smallest_size(list(seen.buffers.values()))
        for name, buffer in seen.buffers.items():
            errors.append(relative(ours.buffers[name], buffer, smallest))
            if not errors[-1] <= limit:
                problem = f"after {self.steps} steps the buffer {name} is not what plain PyTorch makes of it"
                raise UserError(Fault("model", problem, "buffers that the forward pass alone changes"))
        errors.append(relative(ours.val_loss, seen.val_loss))
        if not errors[-1] <= limit:
            problem = f"the validation loss is {ours.val_loss:.6g} here and {seen.val_loss:.6g} in plain PyTorch"
            raise UserError(Fault("model", problem, "an evaluation mode that depends on weights and buffers alone"))
        return max(errors)

    def _refuse_randomness(self, seen: PlainRun, again: PlainRun) -> None:
        same = all(
            a is b or (a is not None and b is not None and torch.equal(a, b))
            for first, second in zip(seen.gradients, again.gradients, strict=True)
            for a, b in zip(first.values(), second.values(), strict=True)
        )
        if seen.losses == again.losses and same and seen.val_loss == again.val_loss:
            return
        if name := first_difference(self.plain.calls(), self.plain.calls()):
            problem = f"{name} gives another output at the same weights, inputs and seed"
            raise UserError(Fault("model", problem, "random numbers of PyTorch's global generator alone"))
        problem = "plain PyTorch trains to other numbers from the same weights, batches and seed"
        raise UserError(Fault("model", problem, "a network and a loss that depend on these alone"))

    def _other_output(self, ours: float, reference: float) -> Fault:
        point = self._point(self.plain.train[0])
        network = point.loss.network

        def run() -> None:
            network.seed(0)
            network(point.weights, point.buffers, point.part.inputs)

        name = first_difference(calls_within(network.module, run), self.plain.calls(), self.tolerance.steps)
        problem = f"the first training loss is {ours:.6g} here and {reference:.6g} in plain PyTorch"
        where = f": {name} gives another output" if name else ""
        return Fault("model", problem + where, "parameters and buffers that are read where they are registered")

    def _compare_vectors(self, ours: dict[str, Tensor | None], plain: dict[str, Tensor | None], what: str) -> float:
        """The error of all entries together; the parameter that differs most is named."""
        norm = total_norm([tensor for tensor in plain.values() if tensor is not None])
        errors = {}
        for name, reference in plain.items():
            difference = ours[name] if reference is None else ours[name] - reference  # type: ignore[operator]
            errors[name] = float(difference.norm()) / (norm or 1.0)  # type: ignore[union-attr]
        error = sum(part**2 for part in errors.values()) ** 0.5
        if not error <= self.tolerance.steps:
            worst = max(errors, key=lambda name: errors[name])
            problem = f"the {what} of {worst} is not that of plain PyTorch (off by {error:.1e} of all)"
            raise UserError(
                Fault("model", problem, "parameters that are read where they are registered, without hooks")
            )
        return error

    def _compare_updates(self, ours: PlainRun, seen: PlainRun) -> float:
        """The error of the way that the weights have gone."""
        start = {name: parameter.detach() for name, parameter in self.plain.module().named_parameters()}
        moves, our_moves = ({name: run.weights[name] - start[name] for name in seen.weights} for run in (seen, ours))
        try:
            return self._compare_vectors({**our_moves}, {**moves}, "step")
        except UserError:
            sparse = [name for name in moves if any(gradients[name] is None for gradients in seen.gradients)]
            if not sparse:
                raise
            problem = f"{sparse[0]} takes part in some steps only, and torch.optim leaves it alone in the others"
            raise UserError(Fault("model", problem, "parameters that every step uses")) from None

    def _engine_run(self, plain: PlainTraining) -> PlainRun:
        """The same steps by the engine, without tangents."""
        task: Any = FixedBatches(self.problem.task, plain.train, plain.val)
        run = InnerRun(replace(self.problem.by("plain"), task=task), self.values, 0, self.steps)
        training, seen = Training(run), PlainRun()
        for segment in run.segments():
            for step in range(segment.start, segment.stop):
                h = run.hyperparameters[segment.row(step)]
                point = training.point(run.problem.theta(h))
                seen.losses.append(float(point.loss))
                seen.gradients.append({**self.layout.views(point.gradient)})
                training.step(point, h)
        seen.weights, seen.buffers = self.layout.views(training.state.weights), training.state.buffers
        mode = self.problem.val_batch_norm
        evaluation = evaluate(run.problem, training.network, training.judged_state, [plain.val], mode)
        assert evaluation is not None
        seen.val_loss = evaluation.loss
        return seen

    def _point(self, batch: Batch) -> TrialPoint:
        """The training loss of `batch` at the initial weights."""
        training = Training(InnerRun(self.problem, self.values, 0, self.steps))
        theta = self.problem.theta(training.run.hyperparameters[0])
        part, state = training.network.cast(Part(batch)), training.state
        loss = self.problem.training_loss(training.network)
        return TrialPoint(loss, state.weights, theta, state.buffers, part)

    def compare_products(self) -> float:
        """The error of a Hessian-vector product by the problem's method, at the initial weights or near them.

        Where a layer starts as zeros a ReLU behind it stands at its kink: there differences are of no use.

        Raises:
            UserError: it is wrong; names the module where that can be told.
        """
        point, method = self._point(self.brief.train[0]), self.problem.tangents.method
        error = self._product_error(point)
        if not error <= self.tolerance.products:
            error = min(error, self._product_error(replace(point, weights=nearby(point.weights))))
        if not error <= self.tolerance.products:
            name = wrong_second_derivative(self.brief.calls())
            where = f" of {name}" if name else ""
            problem = f"the second derivative{where} by {method} is off by {error:.1e} from differences of gradients"
            raise UserError(
                Fault("tangents.method", problem, "a network whose gradient is differentiable as it stands")
            )
        return error

    def compare_low_product(self, reference: Witness) -> float:
        """The error of a product under autocast against that of `reference`, without it, on the same samples.

        Raises:
            UserError: it is nothing like it.
        """
        ours, exact = (witness._product(witness._point(witness.brief.train[0])) for witness in (self, reference))
        error = relative(ours, exact)
        if not error <= self.tolerance.products:
            problem = f"a Hessian-vector product under autocast is off by {error:.1e} from the one without it"
            raise UserError(Fault("inner.precision", problem, "null, for tangents that mean something"))
        return error

    def _product(self, point: TrialPoint) -> Tensor:
        live = {name: torch.zeros_like(point.buffers[name])[None] for name in point.loss.network.live}
        direction, theta = random_like(point.weights)[None], torch.zeros_like(point.theta)[None]
        return point.by(self.problem.tangents.method).products(direction, theta, live)[0][0]

    def _product_error(self, point: TrialPoint) -> float:
        method, direction, product = self.problem.tangents.method, random_like(point.weights), self._product(point)
        # `torch.func` may place dropout masks elsewhere than plain PyTorch; its own gradient then is the reference.
        own_masks = method == "jvp" and self.brief.draws_random_numbers()

        def gradient(weights: Tensor) -> Tensor:
            if own_masks:
                return replace(point, weights=weights).by(method).gradient
            return self.brief.gradient_at(self.layout, weights, point.theta)

        return self._difference(gradient, point.weights, direction, product)

    def compare_hypergradient(self, estimator: Estimator) -> float | None:
        """The error of the hypergradient along a random direction of λ; None where it cannot be told.

        Raises:
            UserError: it is wrong.
        """
        masks_differ = self.problem.tangents.method == "jvp" and self.brief.draws_random_numbers()
        if not self.exact or masks_differ:
            return None
        exact = replace(self.problem.tangents, clip_hvp=None, pruning=Pruning())
        task: Any = FixedBatches(self.problem.task, self.brief.train, self.brief.val)
        run = InnerRun(replace(self.problem, tangents=exact, task=task), self.values, 0, self.steps)
        gradient = torch.tensor(estimator(run).hypergradients, dtype=torch.float64)
        start = torch.tensor(self.values, dtype=torch.float64)
        sizes = torch.tensor([slot.owner.step or 1.0 for slot in self.problem.space.elements], dtype=torch.float64)
        direction = random_like(start) * start.abs().where(start != 0, sizes)

        def loss_at(values: Tensor) -> Tensor:
            return torch.tensor(self.brief.run(values.tolist()).val_loss, dtype=torch.float64)

        error = self._difference(loss_at, start, direction, gradient @ direction)
        if not error <= self.tolerance.products:
            name = wrong_second_derivative(self.brief.calls())
            where = f", by the second derivative of {name}" if name else ""
            problem = (
                f"over {self.steps} steps the hypergradient is off by {error:.1e} from differences of plain PyTorch"
            )
            raise UserError(Fault("estimator", problem + where, "derivatives that follow all that the loss depends on"))
        return error

    def _difference(
        self, function: Callable[[Tensor], Tensor], start: Tensor, direction: Tensor, derivative: Tensor
    ) -> float:
        """The error of `derivative` along `direction` against central differences, at the step that agrees best."""
        size, errors = float(start.norm() / direction.norm()) or 1.0, []
        for nudge in self.tolerance.nudges:
            h = nudge * size
            difference = (function(start + h * direction) - function(start - h * direction)) / (2 * h)
            errors.append(relative(derivative, difference))
            if errors[-1] <= self.tolerance.products / 10:
                break
        return min(errors)

"""Flow and diffusion heads against numbers that the authors' implementation gives.

Reads the folder that CALM_GOLDEN names and runs every case it finds, whatever its K, l or V.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from calm_lightning.checkpoints.released import read_released
from calm_lightning.language_model.calm import ContinuousLM
from calm_lightning.language_model.heads.diffusion import TRAINING_STEPS, DiffusionHead, reverse_step
from calm_lightning.language_model.heads.flow import FlowHead
from calm_lightning.language_model.heads.schedule import cosine_betas

GOLDEN = Path(os.environ.get("CALM_GOLDEN", Path(__file__).parents[3] / "shared" / "golden"))
pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no golden numbers at {GOLDEN}; set CALM_GOLDEN")
SOLVED = "sample_"
"""A flow case names its solutions sample_{solver}_{steps}steps, a diffusion case respaced_step{index}_{what}."""
RESPACED_STEPS = 100


def cases(kind: str) -> list[Any]:
    found = sorted((GOLDEN / kind).glob("*/case.safetensors"))
    return [pytest.param(path.parent, id=f"{kind}-{path.parent.name}") for path in found]


def released(folder: Path) -> ContinuousLM:
    checkpoint = read_released(folder / "checkpoint")
    model = ContinuousLM(checkpoint.model, checkpoint.vocabulary).eval().requires_grad_(False)
    model.load_state_dict(checkpoint.weights)
    return model


def close(ours: Tensor, theirs: Tensor, relative: float = 1e-5) -> None:
    scale = theirs.abs().max().clamp(min=1e-6)
    torch.testing.assert_close(ours, theirs, rtol=relative, atol=float(relative * scale))


@pytest.mark.parametrize("folder", cases("flow"))
def test_flow(folder: Path) -> None:
    head, case = released(folder).head, load_file(folder / "case.safetensors")
    assert isinstance(head, FlowHead)
    condition_PD, start_PZ, time_P = case["condition"], case["x0"], case["time"]
    close(head.velocity(start_PZ, time_P, head.net.condition(condition_PD)), case["velocity_at_x0"])
    error_MP = head.velocity_error(condition_PD, case["target"][None], start_PZ[None], time_P[None])
    close(error_MP[0], case["loss_per_sample"])
    solutions = [name for name in case if name.startswith(SOLVED) and name.endswith("steps")]
    assert solutions
    for name in solutions:
        head.solver, _, steps = name.removeprefix(SOLVED).removesuffix("steps").partition("_")
        head.steps = int(steps)
        close(head.integrate(condition_PD, case["sample_start"][None])[0], case[name])


@pytest.mark.parametrize("folder", cases("diffusion"))
def test_diffusion(folder: Path) -> None:
    head, case = released(folder).head, load_file(folder / "case.safetensors")
    assert isinstance(head, DiffusionHead)
    condition_PD, step_P, noise_PZ = case["condition"], case["timestep"], case["noise"]
    close(cosine_betas(TRAINING_STEPS), case["betas"])
    noisy_PZ = head.add_noise(case["target"], noise_PZ, step_P)
    close(noisy_PZ, case["q_sample"])
    encoded_PD = head.net.condition(condition_PD)
    close(head.net(noise_PZ, step_P, encoded_PD), case["net_output_at_noise"])
    noise_error, bound = head.errors(condition_PD, case["target"][None], noise_PZ[None], step_P[None])
    close(noise_error[0], case["mse"])
    close(bound[0], case["vb"])
    close((noise_error + bound)[0], case["loss_per_sample"])
    head.sampling_chain = head.training_chain.respaced(RESPACED_STEPS)
    means = [name for name in case if name.startswith("respaced_step") and name.endswith("_mean")]
    assert means
    for name in means:
        index = torch.tensor([int(name.removeprefix("respaced_step").removesuffix("_mean"))])
        predicted, mix = head.predict(case["q_sample"], index, encoded_PD)
        mean_PZ, log_variance_PZ = reverse_step(head.sampling_chain, case["q_sample"], predicted, mix, index)
        close(mean_PZ, case[name])
        close(log_variance_PZ, case[name.replace("_mean", "_log_variance")])

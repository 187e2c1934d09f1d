"""The forward process, its losses and posterior, and the samplers."""

import functools
import math

import numpy as np
import pytest
import torch

from moeapps.core.errors import ConfigError, DataError
from moeapps.vision import Diffusion, SwitchDiT
from moeapps.vision.diffusion import alphas_cumprod, between, discrete_log_likelihood
from moeapps.vision.sampling import Noise, draw, spaced_timesteps


class Oracle(torch.nn.Module):
    """Knows the image that every noisy one came from; the best that a network could be."""

    num_classes = 10

    def __init__(self, diffusion: Diffusion, x0: torch.Tensor, sigma: bool = False) -> None:
        super().__init__()
        self.diffusion, self.x0, self.sigma = diffusion, x0, sigma
        self.calls: list[int] = []

    def forward(self, x, t, y=None):
        self.calls.append(len(x))
        x0 = self.x0.expand_as(x)
        eps = self.diffusion.to_eps(x, t, x0)
        out = eps if self.diffusion.prediction == "eps" else self.diffusion.target(x0, t, eps)
        return torch.cat([out, torch.zeros_like(out)], 1) if self.sigma else out


def images(n: int = 6) -> torch.Tensor:
    return torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_schedules_are_those_of_their_papers():
    linear = alphas_cumprod("linear", 1000)
    assert float(linear[0]) == pytest.approx(1 - 1e-4)
    assert float(linear[-1]) == pytest.approx(4.0358e-5, rel=1e-3)  # DDPM's
    cosine = alphas_cumprod("cosine", 1000)
    f = [math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in (0, 500)]
    assert float(cosine[499]) == pytest.approx(f[1] / f[0], rel=1e-9)
    for schedule in (linear, cosine):
        assert (schedule.diff() < 0).all()
        assert (schedule > 0).all()
    assert float(alphas_cumprod("linear", 100)[-1]) == pytest.approx(float(linear[-1]), rel=0.6)  # as steep


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_noise_and_prediction_round_trip(schedule, prediction):
    diffusion = Diffusion(1000, schedule, prediction)
    x0, noise = images().double(), torch.randn(6, 1, 4, 4, dtype=torch.float64)
    t = torch.tensor([0, 1, 250, 500, 750, 900])
    x = diffusion.q_sample(x0, t, noise)
    found = diffusion.to_x0(x, t, diffusion.target(x0, t, noise))
    torch.testing.assert_close(found, x0, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(diffusion.to_eps(x, t, x0), noise, atol=1e-5, rtol=1e-5)
    assert (diffusion.q_sample(x0, torch.full((6,), 999), noise) - noise).abs().max() < 0.02  # nothing left of it


def test_the_posterior_is_the_closed_form_of_ddpm():
    diffusion = Diffusion(1000, "linear")
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    bar = (1 - betas).cumprod(0)
    x0, x = images(4).double(), torch.randn(4, 1, 4, 4, dtype=torch.float64)
    for step in (1, 37, 999):  # equations 6 and 7 of Ho et al.
        t = torch.full((4,), step)
        mean, low, high = diffusion.posterior(x0, x, t, t - 1)
        before, beta = bar[step - 1], betas[step]
        expected = (before.sqrt() * beta * x0 + (1 - beta).sqrt() * (1 - before) * x) / (1 - bar[step])
        torch.testing.assert_close(mean, expected, atol=1e-5, rtol=1e-4)
        assert float(low[0]) == pytest.approx(float(((1 - before) / (1 - bar[step]) * beta).log()), abs=1e-3)
        assert float(high[0]) == pytest.approx(float(beta.log()), abs=1e-3)
    zero = torch.zeros(4, dtype=torch.long)
    mean, low, _ = diffusion.posterior(x0, x, zero, zero - 1)
    torch.testing.assert_close(mean, x0, atol=1e-6, rtol=0)
    one = zero + 1
    torch.testing.assert_close(low, diffusion.posterior(x0, x, one, zero)[1])


def test_posteriors_of_single_steps_make_that_of_a_long_one():
    diffusion = Diffusion(50, "cosine")
    x0 = torch.zeros(1, 1, 1, 1)
    t, s = torch.tensor([40]), torch.tensor([10])
    # q(x_s | x_t, x0) by Bayes, from two Gaussians in one dimension
    bar_t, bar_s = float(diffusion.alphas[40]), float(diffusion.alphas[10])
    precision = 1 / (1 - bar_s) + (bar_t / bar_s) / (1 - bar_t / bar_s)
    mean, low, _ = diffusion.posterior(x0 + 0.7, x0 + 0.3, t, s)
    expected = (math.sqrt(bar_s) * 0.7 / (1 - bar_s) + math.sqrt(bar_t / bar_s) * 0.3 / (1 - bar_t / bar_s)) / precision
    assert float(mean) == pytest.approx(expected, rel=1e-4)
    assert float(low) == pytest.approx(-math.log(precision), abs=1e-4)


def test_losses_of_a_perfect_prediction():
    diffusion = Diffusion(100, "cosine", "v", snr_gamma=5)
    x0, noise = images(), torch.randn(6, 1, 4, 4)
    t = torch.tensor([0, 20, 40, 60, 80, 99])
    x = diffusion.q_sample(x0, t, noise)
    perfect = diffusion.target(x0, t, noise)
    assert float(diffusion.losses(perfect, x0, x, t, noise)["task"]) == 0
    low = torch.cat([perfect, -torch.ones_like(perfect)], 1)  # sigma at its lower bound: that of the posterior
    terms = diffusion.losses(low[1:], x0[1:], x[1:], t[1:], noise[1:])
    assert float(terms["vlb"]) == pytest.approx(0, abs=1e-3)
    high = torch.cat([perfect, torch.ones_like(perfect)], 1)
    assert float(diffusion.losses(high[1:], x0[1:], x[1:], t[1:], noise[1:])["vlb"]) > 1e-4


def test_the_bound_teaches_sigma_only():
    diffusion = Diffusion(100)
    x0, noise, t = images(), torch.randn(6, 1, 4, 4), torch.tensor([0, 20, 40, 60, 80, 99])
    x = diffusion.q_sample(x0, t, noise)
    output = torch.randn(6, 2, 4, 4, requires_grad=True)
    diffusion.losses(output, x0, x, t, noise)["vlb"].backward()
    assert output.grad[:, :1].abs().max() == 0
    assert (output.grad[:, 1:].flatten(1).abs().amax(1) > 0).all()


def test_min_snr_weights():
    for prediction in ("eps", "v"):
        diffusion = Diffusion(1000, "linear", prediction, snr_gamma=5.0)
        t = torch.tensor([0, 300, 999])
        snr = diffusion.alphas[t] / (1 - diffusion.alphas[t])
        expected = snr.clamp(max=5) / (snr if prediction == "eps" else snr + 1)
        torch.testing.assert_close(diffusion.weight(t).double(), expected, atol=1e-5, rtol=1e-3)
    assert (Diffusion(1000).weight(t) == 1).all()


def test_likelihoods_of_the_256_levels_sum_to_one():
    levels = torch.arange(256).double() / 127.5 - 1
    for mean, log_variance in ((0.3, -6.0), (-0.99, -3.0), (1.0, -1.0)):
        total = discrete_log_likelihood(levels, torch.tensor(mean), torch.tensor(log_variance)).exp().sum()
        assert float(total) == pytest.approx(1, abs=1e-4)
    assert float(between(torch.tensor(-1.0), torch.tensor(2.0), torch.tensor(4.0))) == 2
    assert float(between(torch.tensor(1.0), torch.tensor(2.0), torch.tensor(4.0))) == 4


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize(("sampler", "eta"), [("ddim", 0.0), ("ddim", 1.0), ("ddpm", 0.0)])
@pytest.mark.parametrize("sigma", [False, True])
def test_with_a_perfect_network_every_sampler_arrives_at_the_image(prediction, sampler, eta, sigma):
    diffusion = Diffusion(100, "cosine", prediction)
    x0 = images(1)
    oracle = Oracle(diffusion, x0, sigma)
    found = draw(oracle, diffusion, (1, 4, 4), Noise(0, 0, 3), steps=20, sampler=sampler, eta=eta)
    torch.testing.assert_close(found, x0.expand(3, -1, -1, -1), atol=1e-3, rtol=0)
    assert oracle.calls == [3] * 20


def test_dpm_solver_arrives_at_the_image():
    pytest.importorskip("diffusers")
    diffusion = Diffusion(1000, "cosine", "v")
    x0 = images(1)
    found = draw(Oracle(diffusion, x0), diffusion, (1, 4, 4), Noise(0, 0, 3), steps=15, sampler="dpm++")
    torch.testing.assert_close(found, x0.expand(3, -1, -1, -1), atol=1e-3, rtol=0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize(("sampler", "steps"), [("ddpm", 7), ("ddim", 50)])
def test_samplers_are_those_of_diffusers_where_they_take_the_same_timesteps(prediction, sampler, steps):
    diffusers = pytest.importorskip("diffusers")
    network = torch.nn.Conv2d(1, 1, 3, padding=1)
    diffusion = Diffusion(50, "cosine", prediction)
    found = draw(lambda x, t, y: network(x), diffusion, (1, 4, 4), Noise(0, 0, 3), steps=steps, sampler=sampler)
    cls, options = (
        (diffusers.DDIMScheduler, {"use_clipped_model_output": True})
        if sampler == "ddim"
        else (diffusers.DDPMScheduler, {})
    )
    alphas = diffusion.alphas
    scheduler = cls(
        num_train_timesteps=50, trained_betas=(1 - alphas / torch.cat([alphas.new_ones(1), alphas[:-1]])).numpy(),
        prediction_type={"eps": "epsilon", "v": "v_prediction"}[prediction], timestep_spacing="linspace",
    )  # fmt: skip
    scheduler.set_timesteps(steps)
    noise = Noise(0, 0, 3)
    x = noise((1, 4, 4))
    for t in scheduler.timesteps:
        x = scheduler.step(network(x).detach(), t, x, generator=noise.generators, **options).prev_sample
    torch.testing.assert_close(found, x, atol=1e-4, rtol=0)


@functools.cache
def small() -> SwitchDiT:
    """A network with random weights, which no test changes."""
    torch.manual_seed(0)
    model = SwitchDiT(img_size=4, patch_size=2, in_chans=1, num_classes=10, dim=16, depth=2, num_heads=2, timesteps=50)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


LABELS = torch.tensor([0, 3, 9, 9])


def sampled(count: int = 4, first: int = 0, **options) -> torch.Tensor:
    y = LABELS[first : first + count]
    return draw(small(), Diffusion(50), (1, 4, 4), Noise(7, first, count), y, **{"steps": 10, **options})


def test_ddim_without_eta_is_deterministic_and_with_it_it_is_not():
    class Silent(Noise):
        """Only the first draw is allowed."""

        def __call__(self, shape):
            assert not hasattr(self, "asked"), "noise on the way"
            self.asked = True
            return super().__call__(shape)

    y = LABELS
    first = draw(small(), Diffusion(50), (1, 4, 4), Silent(7, 0, 4), y, steps=10)
    torch.testing.assert_close(first, sampled(), atol=0, rtol=0)
    assert (sampled(eta=1.0) - first).abs().max() > 0.01
    torch.testing.assert_close(sampled(eta=1.0), sampled(eta=1.0), atol=0, rtol=0)


@pytest.mark.parametrize("options", [{}, {"sampler": "ddpm"}, {"guidance": 3.0}, {"eta": 0.5, "guidance": 2.0}])
def test_an_image_does_not_depend_on_those_beside_it(options):
    whole = sampled(4, **options)
    for i in range(4):
        torch.testing.assert_close(sampled(1, i, **options), whole[i : i + 1], atol=1e-4, rtol=1e-4)


def test_guidance_goes_beyond_the_prediction_without_label():
    class Labelled(torch.nn.Module):
        num_classes = 3

        def forward(self, x, t, y=None):
            value = 3 if y is None else y
            return torch.zeros_like(x) + torch.as_tensor(value).view(-1, 1, 1, 1)

    seen = {}
    for guidance in (0.0, 1.0, 2.0):
        found = []
        draw(
            Labelled(), Diffusion(50, prediction="v"), (1, 2, 2), Noise(0, 0, 1), torch.tensor([1]), steps=1,
            guidance=guidance, clip=False, watch=lambda step, x, x0, found=found: found.append(x0),
        )  # fmt: skip
        seen[guidance] = found[0]
    torch.testing.assert_close(seen[2.0] - seen[1.0], seen[1.0] - seen[0.0])
    assert (seen[1.0] - seen[0.0]).abs().min() > 1


def test_timesteps_are_even_and_end_at_zero():
    assert spaced_timesteps(1000, 5) == [999, 749, 500, 250, 0]
    assert spaced_timesteps(10, 10) == list(range(9, -1, -1))
    assert spaced_timesteps(10, 1) == [9]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be a whole number"),
        ({"steps": 51}, "steps must be at most the 50 timesteps of the training, got 51"),
        ({"sampler": "euler"}, r"sampler must be one of ddim, ddpm, dpm\+\+"),
        ({"eta": -1.0}, "eta must be"),
        ({"guidance": float("nan")}, "guidance must be"),
    ],
)
def test_impossible_sampling_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        sampled(**options)


def test_guidance_without_labels_is_refused():
    with pytest.raises(ConfigError, match="guidance needs labels"):
        draw(small(), Diffusion(50), (1, 4, 4), Noise(0, 0, 2), steps=5, guidance=2.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"schedule": "quadratic"}, "schedule must be one of linear, cosine"),
        ({"prediction": "x0"}, "prediction must be one of eps, v"),
        ({"timesteps": 1}, "timesteps must be at least 2"),
        ({"snr_gamma": 0.0}, "snr_gamma must be a number above 0"),
    ],
)
def test_impossible_diffusions_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Diffusion(**arguments)


def test_timesteps_of_another_shape_or_type_are_refused():
    diffusion = Diffusion(50)
    x = images(4)
    for t in (torch.tensor([3]), torch.tensor([1.0, 2.0, 3.0, 3.7])):
        with pytest.raises(DataError, match="t must be 4 whole numbers"):
            diffusion.q_sample(x, t, x)
    whole = torch.tensor([1, 2, 3, 4])
    torch.testing.assert_close(diffusion.q_sample(x, whole.int(), x), diffusion.q_sample(x, whole, x))


def test_noise_is_the_same_in_every_process():
    expected = torch.tensor([[-0.2049609, 0.6136877, 0.7179285], [-0.2398026, -1.6091409, 0.5941709]])
    torch.testing.assert_close(Noise(9, 0, 2)((3,)), expected, atol=1e-6, rtol=0)


def test_noise_of_an_image_is_its_own():
    a, b = Noise(3, 0, 5), Noise(3, 2, 2)
    for _ in range(3):
        np.testing.assert_array_equal(a((1, 4, 4))[2:4], b((1, 4, 4)))
    assert not torch.equal(Noise(4, 0, 5)((1, 4, 4)), Noise(3, 0, 5)((1, 4, 4)))

"""The demo: its claims in numbers, that a seed fixes them, its own gradients, and how it says that it cannot run."""

import contextlib
import io
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

import fastbn
from fastbn import cli, commands, demo
from fastbn.demo import data, networks, report, timing, training

pytest.importorskip("mlxtend")
image = pytest.importorskip("matplotlib.image")
pytest.importorskip("tqdm")


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """`fastbn demo --quick`, once: its results, its folder and what it printed."""
    folder = tmp_path_factory.mktemp("quick")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        results = demo.run(folder, seed=0, quick=True)
    return results, folder, printed.getvalue()


# ---- the paper's claims


@pytest.mark.parametrize("goal", [0.5, 0.7, 0.8, 0.85])
def test_bn_reaches_each_test_accuracy_in_fewer_steps(quick, goal):
    without, with_bn = quick[0].sigmoid
    assert (without.batch_norm, with_bn.batch_norm) == (False, True)
    fast, slow = with_bn.steps_to(goal, with_bn.accuracy), without.steps_to(goal, without.accuracy)
    assert fast is not None
    assert slow is None or fast < slow


def test_both_sigmoid_networks_learn(quick):
    """Without this, the claim above would hold against a network that is simply broken."""
    without, _ = quick[0].sigmoid
    assert without.steps_to(0.5, without.accuracy) is not None


def test_high_rate_works_with_bn_and_fails_without(quick):
    final = {(r.rate, r.batch_norm): r.accuracy[-1] for r in quick[0].conv}
    low, high = demo.CONV_RATES
    assert final[low, False] > 0.8
    assert final[low, True] > 0.8
    assert final[high, True] > 0.8
    assert final[high, False] < 0.2


def test_population_statistics_serve_as_well_as_running_ones(quick):
    """They may serve better: at rate 1 the weights move so fast that running averages are those of older weights. (The
    last step's accuracy hangs on the last bits of the matrix products, and so on the processor.)
    """
    for record in [*quick[0].sigmoid, *quick[0].conv]:
        assert (record.population_accuracy is not None) == record.batch_norm
        if record.batch_norm:
            assert record.population_accuracy > record.accuracy[-1] - 0.05


def test_input_of_a_sigmoid_moves_less_with_bn(quick):
    """Figure 1 of the paper: the spread of the last hidden layer's inputs, from the first tenth of the training on."""
    growth = []
    for record in quick[0].sigmoid:
        low, median, high = np.array(record.percentiles[len(record.percentiles) // 10 :]).T
        assert (low < median).all()
        assert (median < high).all()
        growth.append((high - low).max() / (high - low).min())
    assert growth[1] < growth[0] / 2


# ---- what a run leaves


@pytest.mark.parametrize("name", ["accuracy.png", "sigmoid_input.png", "convolution.png"])
def test_pictures(quick, name):
    pixels = image.imread(quick[1] / name)
    assert pixels.shape[0] > 400
    assert pixels.shape[1] > 800
    colours = np.unique((pixels[..., :3] * 255).astype(int).reshape(-1, 3), axis=0)
    assert len(colours) > 20


def test_report_is_printed_and_written(quick):
    results, folder, printed = quick
    text = (folder / "report.txt").read_text(encoding="utf-8")
    assert text in printed
    without, with_bn = results.sigmoid
    row = next(line for line in text.splitlines() if line.startswith("test 50 %"))
    assert row.split()[3:] == [str(r.steps_to(0.5, r.accuracy)) for r in (without, with_bn)]
    high = results.conv[-2:]
    assert f"Convolution {high[0].name}: fails, final test accuracy {100 * high[0].accuracy[-1]:.1f} %." in text
    assert f"Convolution {high[1].name}: works, final test accuracy {100 * high[1].accuracy[-1]:.1f} %." in text


def test_times_are_of_equal_results(quick):
    for record in [*quick[0].sigmoid, *quick[0].conv]:
        looks = len(record.steps) if record.batch_norm else 0
        assert len(record.times.fastbn) == len(record.times.formula) == len(record.times.step) == looks
        if looks:
            assert min(record.times.fastbn + record.times.formula) > 0
            assert 0 < record.times.difference < 1e-4


def test_report_says_when_bn_is_slower():
    without = training.Record(False, 0.1, [10, 20], [0.55, 0.75], [0.6, 0.95])
    with_bn = training.Record(True, 0.1, [10, 20], [0.2, 0.55], [0.6, 0.7])
    conv = [training.Record(True, 1.0, [10], [0.15], [0.1]), training.Record(False, 1.0, [10], [0.5], [0.1])]
    text = " ".join(" ".join(report.verdicts([without, with_bn], conv)).split())
    assert "NOT fewer steps with BN to a test accuracy of 50 % (20 against 10), 70 % (never against 20)" in text
    assert "NOT fewer steps with BN to a training accuracy of 90 % (never against 20)" in text
    assert "LOWER with BN, 55.0 % against 75.0 %" in text
    assert "with BN, rate 1: fails" in text
    assert "without BN, rate 1: neither works nor fails" in text
    assert ": fewer" not in text


# ---- reproducible


def test_same_seed_same_numbers():
    plan = demo.Plan(sigmoid_steps=40, conv_steps=10, every=10)
    with contextlib.redirect_stderr(io.StringIO()):
        first, second, other = (demo.experiment(plan, seed) for seed in (1, 1, 2))
    assert first == second
    assert first != other
    assert all(r.accuracy for r in [*first.sigmoid, *first.conv])
    assert [r.steps for r in first.sigmoid] == [[10, 20, 30, 40]] * 2


def test_compared_networks_start_alike_and_bn_replaces_the_bias():
    for make in (networks.sigmoid_network, networks.conv_network):
        plain, normalised = (make(np.random.default_rng(3), batch_norm) for batch_norm in (False, True))
        names = []
        for a, b in zip(plain.layers, normalised.layers, strict=True):
            if isinstance(b, fastbn.BatchNorm):
                assert isinstance(a, networks.Bias)
            else:
                assert type(a) is type(b)
                names += [name for name, _, _ in b.parameters()]
                for (_, v, _), (_, w, _) in zip(a.parameters(), b.parameters(), strict=True):
                    np.testing.assert_array_equal(v, w)
        assert names == ["w"] * 4 + ["b"]


# ---- the parts


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda rng, bn: networks.sigmoid_network(rng, bn, (6, 5, 4, 3, 10), np.float64), (7, 6)),
        (lambda rng, bn: networks.conv_network(rng, bn, (2, 3, 4), 7, np.float64), (4, 2, 7, 7)),
    ],
    ids=["sigmoid", "conv"],
)
def test_gradients(make, shape, batch_norm):
    """Against central differences, for every single parameter."""
    rng = np.random.default_rng(5)
    network = make(rng, batch_norm)
    x, labels = rng.normal(size=shape), rng.integers(0, 10, shape[0])

    def loss():
        return networks.softmax_cross_entropy(network(x), labels)[0]

    parameters = [p for layer in network.layers for p in layer.parameters()]
    for _, value, _ in parameters:
        value += rng.normal(0, 0.5, value.shape)  # away from gamma = 1 and beta = 0, where some errors do not show
    network.backward(networks.softmax_cross_entropy(network(x), labels)[1])
    gradients = [gradient.copy() for _, _, gradient in parameters]
    assert len(parameters) == sum(len(layer.parameters()) for layer in network.layers) > 3
    h = 1e-5
    for (name, value, _), gradient in zip(parameters, gradients, strict=True):
        numeric = np.empty_like(value)
        for i in np.ndindex(value.shape):
            middle = value[i]
            value[i] = middle + h
            above = loss()
            value[i] = middle - h
            numeric[i] = (above - loss()) / (2 * h)
            value[i] = middle
        np.testing.assert_allclose(gradient, numeric, rtol=1e-5, atol=1e-8, err_msg=name)


@pytest.mark.parametrize("shape", [(20, 3), (5, 3, 4, 6)])
def test_formula_is_what_fastbn_computes(shape):
    rng = np.random.default_rng(6)
    x, dy = rng.normal(3, 2, shape), rng.normal(size=shape)
    gamma, beta = rng.normal(size=3), rng.normal(size=3)
    both = (compute(x, dy, gamma, beta, 1e-5) for compute in (timing.by_fastbn, timing.by_formula))
    for a, b in zip(*both, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_algorithm_2():
    """Population statistics of the second BN layer, in float64 and one formula a line."""
    rng = np.random.default_rng(7)
    network = networks.sigmoid_network(rng, True, (6, 5, 4, 10), np.float64)
    x = rng.normal(size=(3 * data.BATCH + 11, 6))
    inputs = [(network(x[i * data.BATCH : (i + 1) * data.BATCH]), network.x[4])[1] for i in range(3)]
    training.use_population_statistics(network, data.Split(x, x, x, x))
    (_, bn) = network.batch_norms()[1]
    np.testing.assert_allclose(bn.running_mean, np.mean([u.mean(0) for u in inputs], 0), rtol=1e-12)
    np.testing.assert_allclose(bn.running_var, np.mean([u.var(0, ddof=1) for u in inputs], 0), rtol=1e-12)


def test_data():
    images, labels = data.load()
    np.testing.assert_array_equal(labels, np.repeat(np.arange(10), 500))
    rows, planes = data.split(images, labels, np.random.default_rng(8))
    assert rows.x.shape == (4000, 784)
    assert planes.test_x.shape == (1000, 1, 28, 28)
    assert set(np.unique(rows.x)) == {0, 1}
    assert planes.x.max() == 1
    np.testing.assert_array_equal(rows.x.reshape(planes.x.shape), planes.x > 0.5)
    assert np.bincount([*rows.labels, *rows.test_labels]).tolist() == [500] * 10
    assert min(np.bincount(rows.test_labels)) > 60  # shuffled before the split: every digit is in the test set
    brightness = np.sort(np.concatenate([planes.x, planes.test_x]).sum(axis=(1, 2, 3), dtype=np.float64))
    np.testing.assert_allclose(brightness, np.sort(images.sum(axis=(1, 2)) / 255), rtol=1e-6)  # no image twice


def test_minibatches_see_every_image_once_a_pass():
    x = np.arange(2 * data.BATCH + 5)
    batches = data.minibatches(data.Split(x, x, x, x), np.random.default_rng(9))
    passes = [np.concatenate([next(batches)[0] for _ in range(2)]) for _ in range(2)]
    assert [len(np.unique(p)) for p in passes] == [2 * data.BATCH] * 2
    assert passes[0].tolist() != passes[1].tolist()


def test_divergence_is_recorded_without_a_warning():
    _, planes = data.split(*data.load(), np.random.default_rng(0))
    network = networks.conv_network(np.random.default_rng(1), False)
    with contextlib.redirect_stderr(io.StringIO()):
        record = training.train(network, planes, 1e12, 50, 50, np.random.default_rng(2), "test")
    assert record.diverged_at is not None
    assert record.steps == [record.diverged_at]
    assert record.accuracy[-1] < 0.2


def test_divergence_in_the_first_step_ends_a_run_too():
    """There is no backward whose arrays could be timed, then or ever."""
    _, planes = data.split(*data.load(), np.random.default_rng(0))
    network = networks.conv_network(np.random.default_rng(1), True)
    network.layers[-2].w[...] = 1e38
    with contextlib.redirect_stderr(io.StringIO()):
        record = training.train(network, planes, 0.1, 50, 1, np.random.default_rng(2), "test")
    assert (record.diverged_at, record.steps) == (1, [1])
    assert np.isnan(record.times.medians()).all()


# ---- the command line


def command(*args):
    call = [sys.executable, "-m", "fastbn", *args]
    return subprocess.run(call, capture_output=True, text=True, timeout=60, check=False, cwd=tempfile.gettempdir())


def test_help_version_and_config():
    assert "demo" in command("--help").stdout
    helped = command("demo", "--help")
    assert helped.returncode == 0
    assert all(option in helped.stdout for option in ("--quick", "--out", "--seed"))
    assert command("--version").stdout == f"fastbn {fastbn.__version__}\n"
    assert fastbn.isa in command("config").stdout
    assert command().returncode == 2


def test_the_command_hands_on_its_options(monkeypatch):
    given = []
    monkeypatch.setattr(demo, "run", lambda *args: given.append(args))
    for options in (["--quick", "--out=here", "--seed=7"], ["--seed=0"], []):
        assert cli.main(["demo", *options]) == 0
    assert given == [("here", 7, True), ("fastbn-demo", 0, False), ("fastbn-demo", 0, False)]


@pytest.mark.skipif(os.name == "nt", reason="a closed pipe is another error there")
@pytest.mark.parametrize(("asked", "unbuffered"), [("config", "1"), ("config", ""), ("--help", "")])
def test_nobody_reads_on(asked, unbuffered):
    """`fastbn config | head -0`: no traceback, neither where it prints nor, at the end, of what is still buffered."""
    reading, writing = os.pipe()
    os.close(reading)
    call, environment = [sys.executable, "-m", "fastbn", asked], {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with subprocess.Popen(
        call, stdout=writing, stderr=subprocess.PIPE, cwd=tempfile.gettempdir(), env=environment
    ) as running:
        os.close(writing)
        assert running.communicate(timeout=60)[1] == b""
    assert running.returncode == 1


def test_import_needs_no_extra():
    late = {*commands.EXTRAS["demo"], *commands.EXTRAS["bench"], "fastbn.demo", "fastbn.bench"}
    code = f"import sys, fastbn, fastbn.cli; print({late} & {{*sys.modules}} or None)"
    call = [sys.executable, "-c", code]
    done = subprocess.run(call, capture_output=True, text=True, timeout=60, check=True, cwd=tempfile.gettempdir())
    assert done.stdout == "None\n"


@pytest.mark.parametrize("package", commands.EXTRAS["demo"])
def test_missing_extra(monkeypatch, capsys, tmp_path, package):
    monkeypatch.setitem(sys.modules, package, None)
    assert cli.main(["demo", "--out", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert message == f'fastbn demo: {package} missing; install the extra: pip install "fastbn[demo]"\n'
    assert not (tmp_path / "out").exists()


def test_missing_extra_where_a_finder_refuses_it(monkeypatch, capsys):
    class Refuses:
        def find_spec(self, name, *_):
            if name == "tqdm":
                raise ModuleNotFoundError(name)

    monkeypatch.delitem(sys.modules, "tqdm", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Refuses(), *sys.meta_path])
    assert cli.main(["demo"]) == 2
    assert capsys.readouterr().err == 'fastbn demo: tqdm missing; install the extra: pip install "fastbn[demo]"\n'


@pytest.mark.parametrize("below", ["", "/folder"])
def test_out_that_cannot_be_written(capsys, tmp_path, below):
    path = tmp_path / "file"
    path.write_text("mine")
    assert cli.main(["demo", "--out", f"{path}{below}"]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"fastbn demo: cannot write to the folder '{path}{below}': ")
    assert path.read_text() == "mine"


def test_an_interrupt_ends_without_a_traceback(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(fastbn, "show_config", interrupted)
    assert cli.main(["config"]) == 130
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no full device")
def test_a_full_disk_is_told_in_one_line(tmp_path):
    command = [sys.executable, "-c", "import sys; from fastbn.cli import main; sys.exit(main(['config']))"]
    with open("/dev/full", "w") as full:
        ran = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    assert (ran.returncode, ran.stderr) == (2, "fastbn: [Errno 28] No space left on device\n")


@pytest.mark.parametrize("seed", ["-1", "x"])
def test_bad_seed(capsys, seed):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["demo", "--seed", seed])
    assert stopped.value.code == 2
    assert "--seed" in capsys.readouterr().err

"""The option --full."""


def pytest_addoption(parser):
    """Add --full."""
    parser.addoption("--full", action="store_true", help="all networks, batches, dtypes, threads and options")


def pytest_generate_tests(metafunc):
    """Make one test of each case."""
    from fastbn.bench.cases import cases

    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", cases(metafunc.config.getoption("--full")), ids=str)

"""The option --full."""


def pytest_addoption(parser):
    """Add --full."""
    parser.addoption("--full", action="store_true", help="all networks, batches, dtypes, threads and options")


def pytest_generate_tests(metafunc):
    """Make one test of each case."""
    import speed

    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", speed.cases(metafunc.config.getoption("--full")), ids=str)

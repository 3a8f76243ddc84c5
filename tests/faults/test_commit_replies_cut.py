"""A share of the COMMITs of clients and workers is lost, or their replies are."""

import pytest

from tests.faults.conftest import Run, for_seconds
from tests.faults.proxy import HOST, CuttingProxy
from tests.faults.site import Site


@pytest.mark.invariant("INV-OUT-002", "INV-OUT-004")
def test_commit_replies_cut(own_site: Site, run: Run) -> None:
    with CuttingProxy((HOST, own_site.server.port), share=0.3) as proxy:
        own_site.through = (HOST, proxy.port)
        with run(own_site) as crew:
            for _ in for_seconds(20, every=1):
                pass
            own_site.faults[f"of {proxy.commits} COMMITs cut"] = proxy.cut
        assert crew.restarts == 0, "a worker died of a COMMIT without a reply"
    assert own_site.errors["CommitOutcomeUnknown None"] > 0

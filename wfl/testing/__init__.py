"""What a user's own tests, and the tests of a backend made elsewhere, can build on.

from wfl import Workflow
from wfl.testing import FakeContext, Outcome

context = FakeContext({"train": [1, Outcome(duration=3600, output="0.98")]})
with Workflow(context) as flow:
    assert flow.run("train").retry(1).output() == "0.98"
assert context.system.now > 3600  # virtual seconds: the test itself took none
"""

from wfl.testing.fake import FakeBackend, FakeContext
from wfl.testing.system import FakeSystem, Outcome

__all__ = ["FakeBackend", "FakeContext", "FakeSystem", "Outcome"]

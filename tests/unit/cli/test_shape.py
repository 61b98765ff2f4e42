# SPDX-License-Identifier: Apache-2.0
from hyper.v1 import container_pb2 as pb
from hyperctl.shape import container_document, describe_status


def test_a_container_whose_agent_is_not_reached_runs_and_says_so() -> None:
    container = pb.Container(state=pb.CONTAINER_STATE_RUNNING, trouble="no agent answered within 10 s")
    assert describe_status(container, 0.0).endswith("(in trouble)")
    state = container_document(container)["State"]
    assert (state["Running"], state["Error"]) == (True, "no agent answered within 10 s")
    container.trouble = ""
    assert "agent" not in describe_status(container, 0.0)

"""`koubou-ctl up`: broker and local agents of this machine as children of one command."""

import click

from koubou_client.ctl.output import Output
from koubou_client.ctl.params import Duration
from koubou_common.addresses import DEFAULT_OLLAMA_URL


@click.command()
@click.option(
    "--ollama-url",
    default=DEFAULT_OLLAMA_URL,
    show_default=True,
    help="The Ollama of the first worker, where there is no workers.yaml yet.",
)
@click.option(
    "--stop-timeout",
    type=Duration(),
    default="20s",
    show_default=True,
    help="How long running tasks may go on after Ctrl-C; a second Ctrl-C ends at once. What did not end runs again.",
)
@click.pass_obj
def command(output: Output, ollama_url: str, stop_timeout: float) -> int:
    """Broker and local agents on this machine, until Ctrl-C.

    Without a workers.yaml one is written: a worker for the Ollama of this host. What the children say is in
    the folder log/ of Koubou's folder.
    """
    from koubou_client.ctl.one_machine import OneMachine, plan  # noqa: PLC0415 - pydantic and ZeroMQ, only here

    return OneMachine(output, plan(output, ollama_url), stop_timeout).run()

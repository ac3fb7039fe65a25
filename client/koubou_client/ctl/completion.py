"""`koubou-ctl completion`: the shell's own script, made by click."""

import click
from click.shell_completion import get_completion_class

from koubou_client.ctl.output import OK, Output

_VARIABLE = "_KOUBOU_CTL_COMPLETE"  # click's own name for this program
_WHERE = {
    "bash": "~/.local/share/bash-completion/completions/koubou-ctl",
    "zsh": "a folder of $fpath, as _koubou-ctl",
    "fish": "~/.config/fish/completions/koubou-ctl.fish",
}


@click.command()
@click.argument("shell", type=click.Choice(list(_WHERE)))
@click.pass_context
def command(ctx: click.Context, shell: str) -> int:
    """Print the completion script of SHELL.

    \b
    bash: koubou-ctl completion bash > ~/.local/share/bash-completion/completions/koubou-ctl
    zsh:  koubou-ctl completion zsh > "${fpath[1]}/_koubou-ctl"
    fish: koubou-ctl completion fish > ~/.config/fish/completions/koubou-ctl.fish
    """
    output = ctx.obj
    assert isinstance(output, Output)
    kind = get_completion_class(shell)
    assert kind is not None, shell
    script = kind(ctx.find_root().command, {}, "koubou-ctl", _VARIABLE).source()
    if output.as_json:
        output.data({"shell": shell, "script": script})
    else:
        click.echo(script)
        output.note(f"# put it into {_WHERE[shell]}")
    return OK

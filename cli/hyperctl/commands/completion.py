# SPDX-License-Identifier: Apache-2.0
"""`hyper completion`, and `hyper __complete`, which its scripts call."""

from typing import Annotated

import typer

from hyperctl import completion as candidates
from hyperctl import tree
from hyperctl.errors import InvalidError

# COMP_WORDS breaks at colons, image names have them: so the line is split here, and what bash has already is cut off.
BASH = r"""# hyper completion for bash: put it into /etc/bash_completion.d/hyper
_hyper() {
    local IFS=$' \t\n' line=${COMP_LINE:0:COMP_POINT} words current prefix
    read -ra words <<<"$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    current=${words[${#words[@]}-1]}
    prefix=${current%"${current##*[:=]}"}
    IFS=$'\n'
    COMPREPLY=($(hyper __complete "${words[@]:1}" 2>/dev/null))
    COMPREPLY=("${COMPREPLY[@]#"$prefix"}")
}
complete -o default -F _hyper hyper
"""

ZSH = r"""#compdef hyper
# hyper completion for zsh: put it into a directory of $fpath as _hyper
_hyper() {
    local -a candidates
    candidates=("${(@f)$(hyper __complete "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    if [[ -n $candidates ]]; then
        compadd -a candidates
    else
        _files
    fi
}
compdef _hyper hyper
"""

FISH = r"""# hyper completion for fish: put it into ~/.config/fish/completions/hyper.fish
function __hyper_complete
    set -l words (commandline -opc) (commandline -ct)
    hyper __complete $words[2..-1] 2>/dev/null
end
complete -c hyper -f -a '(__hyper_complete)'
"""

SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}

app = tree.group()


@tree.command(app, "completion")
def completion(
    shell: Annotated[str, typer.Argument(metavar="bash|zsh|fish", help="Which shell", show_default=False)],
) -> None:
    """Print the completion script of a shell: `source <(hyper completion bash)`."""
    if shell not in SCRIPTS:
        raise InvalidError(
            f"no completion for {shell!r}", subject="completion", hint=f"there is {', '.join(SCRIPTS)}"
        )
    print(SCRIPTS[shell], end="")


@app.command(
    "__complete", cls=tree.HyperCommand, context_settings={"ignore_unknown_options": True}, hidden=True
)
def complete(words: Annotated[list[str] | None, typer.Argument()] = None) -> None:
    """Print candidates for the last word."""
    from hyperctl.main import app as root

    for candidate in candidates.complete(typer.main.get_command(root), words or []):
        print(candidate)

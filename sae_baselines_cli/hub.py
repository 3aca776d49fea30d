"""`publish`: a study on the Hugging Face Hub."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sae_baselines_cli.shared import ask, console, group, say, visible

if TYPE_CHECKING:
    from sae_baselines.hub.layout import Publication

app = group()


@app.command()
def publish(
    study: Annotated[Path, typer.Argument(help="Study folder: trained, evaluated, reported.")],
    repo: Annotated[str, typer.Argument(help="user/repo on the Hugging Face Hub.")],
    license: Annotated[
        str | None,
        typer.Option(help="The Hub's id of the licence, e.g. mit; or 'other'. Never guessed."),
    ] = None,
    license_name: Annotated[
        str | None, typer.Option(help="Name of the licence, with --license other.")
    ] = None,
    license_link: Annotated[
        str | None, typer.Option(help="Where it can be read, with --license other.")
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(help="The Hub's id of the language model, if the study's is local."),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Make the repo private, if it is new.")
    ] = False,
    revision: Annotated[str, typer.Option(help="Branch; made if it is not there.")] = "main",
    replace: Annotated[
        bool,
        typer.Option(
            "--replace",
            help="Overwrite files of the same paths that are not of this study, or a README.md "
            "that was edited. Without it they are refused.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print files, sizes and card; upload nothing.")
    ] = False,
) -> None:
    """Publish a study: SAEs that stock SAELens loads, results, report and a model card.

    SAEs go up first, a commit each, then results, report and card in one commit. Only what the
    repo does not have is uploaded: run it again to update, or to go on after an interruption.
    Files of other paths than this study's are never touched. It needs a token that may write:
    `hf auth login`, or HF_TOKEN.

    Examples:

    - `sae-baselines publish studies/demo alice/baselines --license mit --dry-run`
    - `sae-baselines publish studies/demo alice/baselines --license apache-2.0 --private`
    """
    from sae_baselines.errors import UserError
    from sae_baselines.hub.card import CardOptions
    from sae_baselines.hub.ids import check_license, check_repo_id, check_revision
    from sae_baselines.hub.plan import plan_publication
    from sae_baselines.hub.upload import publish as upload

    check_repo_id(repo)
    check_revision(revision)
    license = license or ask("Licence of these SAEs (the Hub's id, e.g. mit)")
    if license is None:
        raise UserError(
            "license: say under which these SAEs are published, e.g. --license mit or "
            "--license apache-2.0"
        )
    # Before the report is built, which takes seconds.
    check_license(license, license_name, license_link)
    options = CardOptions(license, license_name, license_link, base_model)
    planned = plan_publication(study, repo, revision, options)
    for note in planned.notes:
        say(f"Note: {note}.")
    if dry_run:
        _rehearse(planned, private, replace)
        return
    done = upload(planned, private=private, replace=replace)
    if not done.uploaded and not done.deleted:
        say(f"Nothing to do: all {done.unchanged} files are there. {done.url}")
        return
    gone = f", deleted {done.deleted}" if done.deleted else ""
    say(
        f"Uploaded {done.uploaded} files ({done.saes} SAEs), unchanged {done.unchanged}{gone}; "
        f"commit {done.commit[:12]}. {done.url}"
    )


def _rehearse(planned: "Publication", private: bool, replace: bool) -> None:
    """Print what would be uploaded; reads the repo if it can, and writes nothing."""
    from huggingface_hub import HfApi
    from rich.table import Table
    from rich.text import Text

    from sae_baselines.errors import UserError
    from sae_baselines.files import size_text
    from sae_baselines.hub.layout import total_size
    from sae_baselines.hub.upload import check_target, compare, read_remote
    from sae_baselines.redact import redacted_logs

    changes = None
    try:
        with redacted_logs():
            remote = read_remote(HfApi(), planned.repo, planned.revision)
    except UserError as error:
        say(f"The repo could not be read, so what is new is not known: {error}")
    else:
        changes = compare(planned, remote)
        if not remote.exists:
            say(f"{planned.repo} is not there, or the token may not see it: it would be made.")
        elif not remote.branch_exists:
            say(f"{planned.repo} has no branch {planned.revision}: it would start from main.")
        try:
            check_target(planned, remote, private, replace)
        except UserError as error:
            say(f"As it is, publishing would stop: {error}")
    states = {}
    if changes is not None:
        groups = (("new", changes.new), ("changed", changes.changed))
        states = {file.path: word for word, files in groups for file in files}
        states |= {file.path: "unchanged" for file in changes.unchanged}
    table = Table("file", "size", "")
    table.columns[1].justify = "right"
    for file in planned.files:
        table.add_row(Text(file.path), size_text(file.size, 1000), states.get(file.path, ""))
    for path in changes.gone if changes is not None else ():
        table.add_row(Text(path), "", "deleted")
    console.print(table)
    total = f"{len(planned.files)} files, {size_text(total_size(planned.files), 1000)}"
    if changes is not None:
        left = size_text(total_size(changes.upload), 1000)
        total += f"; to upload: {len(changes.upload)}, {left}"
    say(f"{total}. Nothing was uploaded.")
    console.rule(planned.card.path)
    typer.echo(visible(planned.card_text), nl=False)

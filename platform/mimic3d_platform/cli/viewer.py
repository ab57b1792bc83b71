"""`mimic3d view`."""

from __future__ import annotations

import os
import sys
import threading
import webbrowser
from typing import Annotated

import typer

from mimic3d_platform.cli.app import Runs, app
from mimic3d_platform.console import Console
from mimic3d_platform.errors import UserError


@app.command()
def view(
    model: Annotated[
        str | None,
        typer.Argument(
            help="A generator's folder (s3://… or a path), a checkpoint, a run, models:/NAME@ALIAS, "
            "models:/NAME/VERSION, or builtin:cars, which is the default."
        ),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Show the newest checkpoint of a run while it trains.")
    ] = False,
    data: Annotated[
        str | None, typer.Option(help="A data set whose cameras and images are shown: s3://… or a path.")
    ] = None,
    runs: Runs = None,
    host: Annotated[str, typer.Option(help="Address to listen on; the page has no login.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)] = 0,
    open_page: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in a browser.")] = True,
) -> None:
    """Show a generator in the browser, from all sides: seeds, branches, depth, meshes, exports."""
    try:
        import viser  # noqa: F401
    except ModuleNotFoundError:
        raise UserError("the viewer needs viser: pip install 'mimic3d[viewer]'") from None
    from mimic3d_platform.settings import DEFAULT_RUNS_URI, use_services
    from mimic3d_platform.viewer import model_source
    from mimic3d_platform.viewer.dataset_views import dataset_views
    from mimic3d_platform.viewer.viewer import Viewer

    console = Console()
    runs_uri = runs or DEFAULT_RUNS_URI
    uri = model or model_source.DEFAULT_MODEL
    ended = threading.Event()
    viewer = None
    try:
        run = model_source.find_run(uri, runs_uri)
        if follow and run is None:
            raise UserError(f"{uri} is no run: --follow takes a run's name below --runs, or its folder")
        if data is not None:
            use_services()
        views = dataset_views(data) if data is not None else []
        if run is None:
            shown = model_source.load_model(uri)
        else:
            if follow:
                console.say(f"the newest checkpoint of {run.uri}, now and as the run trains")
            shown = model_source.first_model(run, ended if follow else None)
        viewer = Viewer(shown, host=host, port=port, views=views)
        console.say(f"{shown.name} is at {viewer.url} (Ctrl-C ends the viewer)")
        if open_page and _has_screen():
            webbrowser.open(viewer.url)
        if follow and run is not None:
            present = viewer

            def replace(newer: model_source.LoadedModel) -> None:
                present.replace_model(newer)
                console.say(f"now {newer.name}")

            model_source.follow(run, replace, console.say, ended)
        ended.wait()
    except KeyboardInterrupt:
        console.say("the viewer has ended")
    finally:
        if viewer is not None:
            viewer.close()


def _has_screen() -> bool:
    """True if a browser would open in a window, not in the terminal."""
    return sys.platform in ("darwin", "win32") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))

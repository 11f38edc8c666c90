"""`sigma photos`: from a folder of pictures to search."""

from argparse import Namespace
from pathlib import Path

from ops.cli.context import AddCommand, emit
from schemas.settings import Settings


def add_commands(add: AddCommand) -> None:
    """Declare the command of this group."""
    command = add("photos", photos, "make a folder of pictures searchable, without captions")
    command.add_argument("folder", type=Path, metavar="FOLDER", help="pictures, with subfolders")
    command.add_argument(
        "--encoder",
        metavar="NAME|FOLDER",
        help="what sees the pictures: efficientnet-minilm (default), CLIP, SigLIP, …; see"
        " docs/encoders.md",
    )
    command.add_argument(
        "--captioner",
        metavar="NAME|FOLDER",
        help="vision-language model, such as Qwen2.5-VL or BLIP, whose captions are learnt from",
    )
    command.add_argument(
        "--retrain",
        action="store_true",
        help="learn again, from all pictures of the index, once the new ones are in it",
    )


def photos(options: Namespace, settings: Settings) -> int:
    """`sigma photos`: exit code 2 when files were left out, after all others went through."""
    from ops.cli.progress_bar import bar
    from ops.photos.photo_folder import PhotosRequest
    from ops.photos.photo_folder import photos as make_searchable

    request = PhotosRequest(options.folder, options.encoder, options.captioner, options.retrain)
    result = make_searchable(settings, request, bar)
    emit(result.to_json(), options.json, result.to_text())
    return 2 if result.rejected else 0

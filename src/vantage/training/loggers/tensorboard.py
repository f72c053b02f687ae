"""TensorBoard, for those who have its package."""

from importlib.util import find_spec

from pytorch_lightning.loggers import TensorBoardLogger


class TensorBoard(TensorBoardLogger):
    """Writes event files to SAVE_DIR/tensorboard."""

    def __init__(self, *, save_dir: str):
        if find_spec("tensorboard") is None and find_spec("tensorboardX") is None:
            raise ValueError("logger=tensorboard needs the package tensorboard: pip install tensorboard")
        super().__init__(save_dir, name="tensorboard", version="")

"""Object stores by URL, through fsspec: s3://, gs://, hf://, memory://."""

import fsspec

from simsiam.errors import UserError

_PACKAGES = {
    **{"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub", "http": "aiohttp"},
    **{"https": "aiohttp", "abfs": "adlfs", "az": "adlfs", "oss": "ossfs", "ssh": "paramiko", "sftp": "paramiko"},
}


def connect(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """A client of the store, and the folder of the URL in it.

    Options and credentials are the backend's own: its environment and ~/.config/fsspec. Raises UserError where fsspec
    does not know the URL, or lacks the package for it.
    """
    try:
        files, folder = fsspec.core.url_to_fs(url)
    except ImportError as error:
        package = _PACKAGES.get(url.partition("://")[0].rpartition("::")[2])
        remedy = f"run `pip install {package}`" if package else "install it"
        raise UserError(f"{url} cannot be opened without a package that is missing ({error}); {remedy}") from error
    except Exception as error:  # an unknown protocol, or a backend that finds its options wrong
        raise UserError(
            f"{url} cannot be opened ({error}); give a folder, or a URL that fsspec knows such as s3://"
        ) from error
    return files, folder.rstrip("/")

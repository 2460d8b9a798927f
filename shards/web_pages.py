"""The pages on which a web server lists a folder: read up to a limit."""

from fsspec.implementations import http

from shards.console import UserError

MAX_PAGE_BYTES = 64 << 20  # 250,000 files of Apache's, 600,000 of nginx's


class BoundedPage(http.aiohttp.ClientResponse):
    """A server's answer in the client that fsspec uses. Its text, decompressed, is no longer than a
    page may be; fsspec asks for the text of nothing else."""

    async def text(self, encoding: str | None = None, errors: str = "strict") -> str:
        """UserError for a longer one, of which no more is read."""
        data = bytearray()
        async for part in self.content.iter_any():
            data += part
            if len(data) > MAX_PAGE_BYTES:
                self.close()
                where = self.url.with_query(None)
                raise UserError(
                    f"{where}: the page that lists this folder has over {MAX_PAGE_BYTES} bytes; "
                    "name folders in it, or archives"
                )
        try:
            return data.decode(encoding or self.charset or "utf-8", errors)
        except LookupError:  # a charset that nobody knows
            return data.decode("utf-8", errors)

"""AEMhttpd: a single-threaded HTTP/1.1 file server over aemd, select() or asyncio."""

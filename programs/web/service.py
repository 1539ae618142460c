#!/usr/bin/env python3
"""Counts its visits, for whoever has the API key.

It listens on the port PORT. A request has the key, API_KEY, in its header X-API-Key. The count is in the directory /data, and
on disk before it is answered. SIGTERM ends the service.

It speaks plain HTTP, so it listens on 127.0.0.1 unless ADDRESS names another address.
"""

import hmac
import os
import signal
import socketserver
import threading
from http.server import BaseHTTPRequestHandler

COUNT = "/data/visits"


def count_visit():
    try:
        with open(COUNT) as file:
            visits = int(file.read())
    except FileNotFoundError:
        visits = 0
    visits += 1
    with open(COUNT + ".new", "w") as file:
        file.write(f"{visits}\n")
        file.flush()
        os.fsync(file.fileno())
    os.rename(COUNT + ".new", COUNT)
    directory = os.open(os.path.dirname(COUNT), os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)
    return visits


class Visit(BaseHTTPRequestHandler):
    # Requests come one after the other: nobody may hold up the next one for long.
    timeout = 5

    def do_GET(self):
        given = self.headers.get("X-API-Key", "")
        if hmac.compare_digest(given.encode(), os.environ["API_KEY"].encode()):
            self.answer(200, f"visit {count_visit()}\n")
        else:
            self.answer(401, "the API key is missing or wrong\n")

    def answer(self, status, text):
        self.send_response(status)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


class Service(socketserver.TCPServer):
    # A service that is started again finds its port free.
    allow_reuse_address = True


def main():
    if not os.environ.get("API_KEY"):
        raise SystemExit("API_KEY is not set")
    address = (os.environ.get("ADDRESS", "127.0.0.1"), int(os.environ["PORT"]))
    with Service(address, Visit) as service:
        # A request that has begun is answered.
        signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=service.shutdown).start())
        print("listening", flush=True)
        service.serve_forever()
    print("ended", flush=True)


if __name__ == "__main__":
    main()

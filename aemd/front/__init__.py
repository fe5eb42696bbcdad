"""The fronts: processes without privilege that speak HTTP/2 with clients and frames with the core.

`python -m aemd.front` is the zygote (zygote.py); it forks a front for whoever the core asks it to. A front
locks itself up (sandbox.py), serves gRPC (server.py, rpc.py) on a socket that only it can reach, relays the
connections that the core hands over to that socket (relay.py), and the messages to the core (uplink.py).
What a message means is not known here.
"""

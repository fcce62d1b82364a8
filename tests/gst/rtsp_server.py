"""An RTSP server on this machine (GStreamer's own, gst-rtsp-server), for tests.

usage: rtsp_server.py PORT FILE PATH WIDTH HEIGHT [USER PASSWORD]

Serves /PATH (a test picture without end, 25 a second) and takes a stream that is published under /in into FILE (MPEG-TS).
PORT 0: any. Prints its port; ends when its standard input does.
"""

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer

LIVE = (
    "( videotestsrc is-live=true pattern=ball ! video/x-raw,format=I420,width={},height={},framerate=25/1"
    " ! rtpvrawpay name=pay0 pt=96 )"
)
TAKE = "( rtph264depay name=depay0 ! h264parse ! mpegtsmux ! filesink sync=false buffer-mode=unbuffered location={} )"


def main(port, file, path, width, height, *credentials):
    Gst.init(None)
    server = GstRtspServer.RTSPServer.new()
    server.set_address("127.0.0.1")
    server.set_service(port)
    live = GstRtspServer.RTSPMediaFactory.new()
    live.set_launch(LIVE.format(width, height))
    live.set_shared(True)
    take = GstRtspServer.RTSPMediaFactory.new()
    take.set_launch(TAKE.format(file))
    take.set_transport_mode(GstRtspServer.RTSPTransportMode.RECORD)
    take.set_eos_shutdown(True)
    if credentials:
        token = GstRtspServer.RTSPToken()
        token.set_string(GstRtspServer.RTSP_TOKEN_MEDIA_FACTORY_ROLE, "user")
        auth = GstRtspServer.RTSPAuth.new()
        auth.add_basic(GstRtspServer.RTSPAuth.make_basic(*credentials), token)
        server.set_auth(auth)
        for factory in (live, take):
            permissions = GstRtspServer.RTSPPermissions.new()
            for permission in ("media.factory.access", "media.factory.construct"):
                permissions.add_permission_for_role("user", permission, True)
            factory.set_permissions(permissions)
    mounts = server.get_mount_points()
    mounts.add_factory(f"/{path}", live)
    mounts.add_factory("/in", take)
    if not server.attach(None):
        sys.exit(f"port {port} cannot be used")
    print(server.get_bound_port(), flush=True)
    loop = GLib.MainLoop()
    GLib.io_add_watch(sys.stdin.fileno(), GLib.PRIORITY_DEFAULT, GLib.IO_HUP, lambda *_: loop.quit())
    loop.run()


main(*sys.argv[1:])

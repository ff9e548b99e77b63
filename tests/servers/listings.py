"""Real web servers on loopback that list a temporary folder: nginx, Apache, lighttpd, Caddy and http.server."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from servers.starting import find_free_ports, wait_until_web_server_answers

SECONDS = 60.0  # limit for starting, which usually takes 0.2 s
PYTHONS = ("3.11", "3.12", "3.13", "3.14")

_NGINX = """
daemon off;
master_process off;
pid {work}/pid;
error_log {work}/error.log;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    default_type application/octet-stream;
    client_body_temp_path {work}/t1; proxy_temp_path {work}/t2; fastcgi_temp_path {work}/t3;
    uwsgi_temp_path {work}/t4; scgi_temp_path {work}/t5;
    server {{
        listen 127.0.0.1:{port};
        autoindex on;
        root {data};
        location /json/ {{ alias {data}/; autoindex_format json; }}
        location /xml/ {{ alias {data}/; autoindex_format xml; }}
        location ~ /denied/ {{ deny all; }}
        location ~ /login/ {{ return 302 /page/; }}
    }}
}}
"""

_APACHE = """
ServerName 127.0.0.1
ServerRoot {work}
PidFile {work}/pid
Listen 127.0.0.1:{port}
ErrorLog {work}/error.log
LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
LoadModule autoindex_module /usr/lib/apache2/modules/mod_autoindex.so
LoadModule dir_module /usr/lib/apache2/modules/mod_dir.so
LoadModule mime_module /usr/lib/apache2/modules/mod_mime.so
LoadModule alias_module /usr/lib/apache2/modules/mod_alias.so
StartServers 1
ServerLimit 1
ThreadsPerChild 32
MaxRequestWorkers 32
TypesConfig /etc/mime.types
DocumentRoot {data}
{aliases}
AddIcon /icons/video.gif .mp4
DefaultIcon /icons/unknown.gif
HeaderName none
ReadmeName README.html
ServerSignature EMail
ServerAdmin admin@example.org
<Directory {data}>
    Options +Indexes +FollowSymLinks
    Require all granted
    AllowOverride None
</Directory>
<LocationMatch /denied/>
    Require all denied
</LocationMatch>
"""

# Settings of Apache's mod_autoindex, by the name of the alias that has them.
APACHE_STYLES = {
    "plain": "IndexOptions None",
    "fancy": "IndexOptions FancyIndexing",
    "table": "IndexOptions FancyIndexing HTMLTable",
    "small": "IndexOptions FancyIndexing SuppressSize SuppressLastModified SuppressDescription SuppressColumnSorting",
    "rich": "IndexOptions FancyIndexing HTMLTable IconsAreLinks FoldersFirst VersionSort NameWidth=* XHTML",
    "headed": "IndexOptions FancyIndexing HTMLTable\n    HeaderName HEADER.html",
}

_LIGHTTPD = """
server.document-root = "{data}"
server.bind = "127.0.0.1"
server.port = {port}
server.errorlog = "{work}/error.log"
server.modules = ( "mod_access", "mod_indexfile", "mod_dirlisting" )
index-file.names = ( "index.html" )
dir-listing.activate = "enable"
$HTTP["url"] =~ "/denied/" {{ url.access-deny = ( "" ) }}
"""

_CADDY = """
{{
    admin off
    auto_https off
    storage file_system {work}
}}
http://127.0.0.1:{port} {{
    bind 127.0.0.1
    root * {data}
    @denied path */denied/*
    respond @denied 403
    file_server browse
}}
"""


class Missing(Exception):
    """A server is not installed, or does not start. The message gives the reason."""


def find_program(name: str) -> str:
    """Return the path of a program.

    Raises:
        Missing: If it is not installed.
    """
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        raise Missing(f"{name} is not installed: apt-get install {name}")
    return found


def find_python(version: str) -> str:
    """Return the path of an interpreter, among those of this process and of pyenv.

    Raises:
        Missing: If there is none.
    """
    if f"{sys.version_info.major}.{sys.version_info.minor}" == version:
        return sys.executable
    found = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python{version}"))
    path = str(found[-1]) if found else shutil.which(f"python{version}")
    if path is None:
        raise Missing(f"Python {version} is not installed")
    return path


@contextlib.contextmanager
def list_with(kind: str, data: Path) -> Iterator[str]:
    """Serve a folder with its listings, and yield the address of its root.

    Args:
        kind: ``"nginx"`` (JSON below /json, XML below /xml), ``"apache2"`` (the styles of APACHE_STYLES below /fancy
            and so on), ``"lighttpd"``, ``"caddy"``, or ``"python3.x"`` for ``http.server``. All but the last one deny
            access to what is in folders with the name "denied".
        data: Folder. Others must be able to read it.

    Raises:
        Missing: If the server is not installed, or does not start.
    """
    work = Path(tempfile.mkdtemp(prefix="listings-"))
    work.chmod(0o755)
    try:
        for _ in range(3):  # another process may take the free port first
            (port,) = find_free_ports(1)
            process = subprocess.Popen(
                _make_command(kind, data, work, port),
                cwd=data,
                env={**os.environ, "HOME": str(work)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            try:
                if wait_until_web_server_answers(f"http://127.0.0.1:{port}/", process, seconds=SECONDS):
                    yield f"http://127.0.0.1:{port}"
                    return
            finally:
                process.terminate()
                process.wait(60)
        log = work / "error.log"
        end = log.read_text(errors="replace")[-2000:] if log.exists() else ""
        raise Missing(f"{kind} exited three times before it was ready; the end of its log:\n{end}")
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _make_command(kind: str, data: Path, work: Path, port: int) -> list[str]:
    config = work / "conf"
    if kind.startswith("python"):
        command = [find_python(kind.removeprefix("python")), "-I", "-m", "http.server", "-b", "127.0.0.1", str(port)]
    elif kind == "nginx":
        config.write_text(_NGINX.format(data=data, work=work, port=port))
        command = [find_program("nginx"), "-p", str(work), "-e", str(work / "error.log"), "-c", str(config)]
    elif kind == "apache2":
        aliases = "\n".join(
            f"Alias /{name} {data}\n<Location /{name}>\n    {options}\n</Location>"
            for name, options in APACHE_STYLES.items()
        )
        config.write_text(_APACHE.format(data=data, work=work, port=port, aliases=aliases))
        command = [find_program("apache2"), "-f", str(config), "-DFOREGROUND"]
    elif kind == "lighttpd":
        config.write_text(_LIGHTTPD.format(data=data, work=work, port=port))
        command = [find_program("lighttpd"), "-D", "-f", str(config)]
    else:
        config.write_text(_CADDY.format(data=data, work=work, port=port))
        command = [find_program("caddy"), "run", "--config", str(config), "--adapter", "caddyfile"]
    if setpriv := shutil.which("setpriv"):
        command[:0] = [setpriv, "--pdeathsig", "KILL", "--"]  # ends with the test process
    return command

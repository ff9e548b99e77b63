"""Files on an SSH server, accessed over SFTP."""

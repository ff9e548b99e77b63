"""Files behind SSH, over SFTP."""

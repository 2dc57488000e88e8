"""OCI image layouts of layers that are there as archives."""

import hashlib
import json
import os
import subprocess


def digest(path):
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def pack(tar):
    """The archive beside itself, packed by gzip."""
    packed = tar + ".gz"
    if not os.path.exists(packed):
        with open(packed, "wb") as out:
            subprocess.run(["gzip", "-6", "-n", "-c", tar], stdout=out, check=True)
    return packed


class Layout:
    """A directory that images are added to. Layers are packed by gzip."""

    def __init__(self, path):
        self.path = path
        self.manifests = []
        self.blobs = os.path.join(path, "blobs/sha256")
        os.makedirs(self.blobs)
        with open(os.path.join(path, "oci-layout"), "w") as handle:
            json.dump({"imageLayoutVersion": "1.0.0"}, handle)

    def _blob(self, data, kind):
        name = hashlib.sha256(data).hexdigest()
        with open(os.path.join(self.blobs, name), "wb") as handle:
            handle.write(data)
        return {"mediaType": kind, "digest": "sha256:" + name, "size": len(data)}

    def _layer(self, packed):
        name = digest(packed)
        target = os.path.join(self.blobs, name)
        if not os.path.exists(target):
            subprocess.run(["cp", "--reflink=auto", packed, target], check=True)
        kind = "application/vnd.oci.image.layer.v1.tar+gzip"
        return {"mediaType": kind, "digest": "sha256:" + name, "size": os.path.getsize(packed)}

    def add(self, tag, tars):
        """Adds an image of these archives, the bottom layer first."""
        layers = [self._layer(pack(tar)) for tar in tars]
        diff_ids = ["sha256:" + digest(tar) for tar in tars]
        rootfs = {"type": "layers", "diff_ids": diff_ids}
        config = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}
        config = self._blob(json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json")
        kind = "application/vnd.oci.image.manifest.v1+json"
        manifest = {"schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers}
        manifest = self._blob(json.dumps(manifest).encode(), kind)
        manifest["annotations"] = {"org.opencontainers.image.ref.name": tag}
        self.manifests.append(manifest)
        with open(os.path.join(self.path, "index.json"), "w") as handle:
            json.dump({"schemaVersion": 2, "manifests": self.manifests}, handle)

// Package volume turns the volumes of a pod into mounts: emptyDir, hostPath, configMap and secret,
// written atomically, on safe paths.
//
// Where things lie, and why: what containers can write to (emptyDir, /etc files, termination
// messages) is below StateDir, on a disk, so no container fills the host's /run. Secrets are below
// RunDir, on a tmpfs, and refused anywhere else. Volumes are made once and then belong to the
// containers; nothing that they put there is trusted when it is read or removed
// (internal/safepath).
//
// What does not belong here: mounting (magikshim launch and the OCI runtime), checking a manifest (pod).
//
// Layer L2: it may import pod and runtime.
package volume

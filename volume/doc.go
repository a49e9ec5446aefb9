// Package volume turns the volumes of a pod into mounts: emptyDir, hostPath, configMap and secret, written atomically, on safe paths.
//
// What does not belong here: mounting (magikagent launch and the OCI runtime), checking a manifest (pod).
//
// Layer L2: it may import pod and runtime.
package volume

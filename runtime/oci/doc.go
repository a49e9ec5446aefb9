// Package oci builds the OCI runtime spec of a container: a pure function of the pod, the image and the
// mounts.
//
// What does not belong here: reading or writing files, and running an OCI runtime (runtime/native).
//
// Layer L2: it may import pod and runtime.
package oci

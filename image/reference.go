package image

import (
	"regexp"
	"strings"

	"github.com/magikrun/magikpod/pod"
)

// The parts of a reference, with the grammar of the distribution project: DOMAIN/PATH[:TAG][@DIGEST].
var (
	domainPattern = regexp.MustCompile(`^(?:(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])(?:\.(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9]))*|\[[a-fA-F0-9:]+\])(?::[0-9]{1,5})?$`)
	pathPattern   = regexp.MustCompile(`^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagPattern    = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`)
	digestPattern = regexp.MustCompile(`^sha256:[a-f0-9]{64}$`)
	hexPattern    = regexp.MustCompile(`^[a-f0-9]{64}$`)
	prefixPattern = regexp.MustCompile(`^(?:sha256:)?[a-f0-9]{4,64}$`)
)

const (
	defaultDomain = "docker.io"
	defaultTag    = "latest"
	maxNameBytes  = 255 // of domain and path, as registries have it
)

// reference is a parsed, normalised reference. Of tag and digest exactly one is set.
type reference struct {
	domain, path, tag, digest string
}

func (r reference) repository() string { return r.domain + "/" + r.path }

func (r reference) String() string {
	if r.digest != "" {
		return r.repository() + "@" + r.digest
	}
	return r.repository() + ":" + r.tag
}

// Normalize returns the full form of a reference: "busybox" is docker.io/library/busybox:latest, as
// docker has it. A reference with a digest loses its tag, because the digest alone decides.
// Invalid: it is no reference.
func Normalize(ref string) (string, error) {
	r, err := parseReference(ref)
	if err != nil {
		return "", err
	}
	return r.String(), nil
}

func parseReference(text string) (reference, error) {
	bad := func(why string) (reference, error) {
		return reference{}, pod.Errorf(pod.Invalid, "cannot use image reference %.300q: %s", text, why)
	}
	var r reference
	rest, digest, hasDigest := strings.Cut(text, "@")
	switch {
	case text == "":
		return bad("it is empty")
	case hasDigest && !digestPattern.MatchString(digest):
		return bad("the digest is not sha256: and 64 hexadecimal digits in lower case")
	case hexPattern.MatchString(text) || digestPattern.MatchString(text):
		return bad("it is an image ID and not a name")
	}
	r.digest = digest
	r.domain, r.path = splitDomain(rest)
	if i := strings.LastIndexByte(r.path, ':'); i > strings.LastIndexByte(r.path, '/') {
		r.path, r.tag = r.path[:i], r.path[i+1:]
		if !tagPattern.MatchString(r.tag) {
			return bad("the tag is not 1 to 128 letters, digits, dots, dashes and underscores")
		}
	}
	if r.domain == defaultDomain && !strings.Contains(r.path, "/") {
		r.path = "library/" + r.path
	}
	switch {
	case !domainPattern.MatchString(r.domain):
		return bad("the registry is no host name")
	case r.path != strings.ToLower(r.path):
		return bad("the name must be in lower case")
	case !pathPattern.MatchString(r.path):
		return bad("the name is not NAME, REGISTRY/NAME or either with :TAG or @DIGEST")
	case len(r.domain)+1+len(r.path) > maxNameBytes:
		return bad("the name is longer than 255 bytes")
	}
	switch {
	case r.digest != "":
		r.tag = ""
	case r.tag == "":
		r.tag = defaultTag
	}
	return r, nil
}

// splitDomain separates the registry, which a first element is when it looks like a host.
func splitDomain(name string) (domain, path string) {
	first, rest, ok := strings.Cut(name, "/")
	if !ok || (!strings.ContainsAny(first, ".:") && first != "localhost" && strings.ToLower(first) == first) {
		return defaultDomain, name
	}
	if first == "index.docker.io" || first == "registry-1.docker.io" {
		return defaultDomain, rest
	}
	return first, rest
}

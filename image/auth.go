package image

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"os"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"

	"github.com/magikrun/magikpod/pod"
)

// authFiles are where root's credentials are when the environment (of a system service) names no
// home: docker's and podman's places.
var authFiles = []string{"/run/containers/0/auth.json", "/root/.config/containers/auth.json", "/root/.docker/config.json"}

const maxAuthFile = 1 << 20

// defaultKeychain is the environment's own (docker's and podman's files, credential helpers), then
// root's files.
var defaultKeychain = authn.NewMultiKeychain(authn.DefaultKeychain, fileKeychain{})

// fileKeychain looks into authFiles, anew for each image: who logs in needs not restart anything.
type fileKeychain struct{}

func (fileKeychain) Resolve(target authn.Resource) (authn.Authenticator, error) {
	for _, path := range authFiles {
		f, err := os.Open(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		data, err := readAll(context.Background(), f, maxAuthFile, path)
		_ = f.Close()
		if err != nil {
			return nil, err
		}
		k, err := KeychainOf(data)
		if err != nil {
			return nil, pod.Errorf(pod.Invalid, "%s: %w", path, err)
		}
		if a, err := k.Resolve(target); err != nil || a != authn.Anonymous {
			return a, err
		}
	}
	return authn.Anonymous, nil
}

// KeychainOf reads a docker config or podman auth file, which is also what a Secret of type
// kubernetes.io/dockerconfigjson holds. The most specific entry counts: REGISTRY/PATH before
// REGISTRY. Credential helpers are ignored. Invalid: it is none.
func KeychainOf(data []byte) (authn.Keychain, error) {
	var f struct {
		Auths map[string]struct {
			Auth          string `json:"auth"`
			Username      string `json:"username"`
			Password      string `json:"password"`
			IdentityToken string `json:"identitytoken"`
			RegistryToken string `json:"registrytoken"`
		} `json:"auths"`
	}
	if err := json.Unmarshal(data, &f); err != nil {
		return nil, invalid("it has no registry credentials: %w", jsonError(err))
	}
	k := fixedKeychain{}
	for key, a := range f.Auths {
		config := authn.AuthConfig{Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken}
		if a.Auth != "" {
			plain, err := base64.StdEncoding.DecodeString(a.Auth)
			user, password, ok := strings.Cut(string(plain), ":")
			if err != nil || !ok {
				return nil, invalid("the credentials for %q are not USER:PASSWORD in base64", key)
			}
			config.Username, config.Password = user, strings.TrimRight(password, "\x00")
		}
		if config != (authn.AuthConfig{}) {
			k[authKey(key)] = config
		}
	}
	return k, nil
}

// jsonError keeps what is in the file, which is secret, out of the text.
func jsonError(err error) error {
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		return pod.Errorf(pod.Invalid, "it is no JSON at byte %d", syntax.Offset)
	}
	return errors.New("it is not of the expected form")
}

// authKey brings the many ways of writing a registry into one: "https://index.docker.io/v1/" is
// docker.io.
func authKey(key string) string {
	key = strings.TrimPrefix(strings.TrimPrefix(key, "https://"), "http://")
	key = strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(key, "/"), "/v1"), "/v2")
	host, path, found := strings.Cut(key, "/")
	switch host {
	case name.DefaultRegistry, "registry-1.docker.io", "registry.hub.docker.com":
		host = defaultDomain
	}
	if !found {
		return host
	}
	return host + "/" + path
}

// fixedKeychain is credentials by REGISTRY or REGISTRY/PATH.
type fixedKeychain map[string]authn.AuthConfig

func (k fixedKeychain) Resolve(target authn.Resource) (authn.Authenticator, error) {
	for key := authKey(target.String()); ; {
		if config, ok := k[key]; ok {
			return authn.FromConfig(config), nil
		}
		i := strings.LastIndexByte(key, '/')
		if i < 0 {
			return authn.Anonymous, nil
		}
		key = key[:i]
	}
}

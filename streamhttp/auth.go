package streamhttp

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"net/http"
	"strings"
)

// BearerToken returns a [Client.Authorize] that sends a token in the
// Authorization header.
func BearerToken(token string) func(*http.Request) error {
	return func(r *http.Request) error {
		if token == "" {
			return errors.New("bearer token is empty")
		}
		r.Header.Set("Authorization", "Bearer "+token)
		return nil
	}
}

// RequireBearerToken returns a [Handler.Authorize] that wants the token, which
// must not be empty, in the Authorization header, whatever the database. It
// compares in constant time.
func RequireBearerToken(token string) func(r *http.Request, name string) error {
	want := sha256.Sum256([]byte(token))
	return func(r *http.Request, _ string) error {
		scheme, got, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		sum := sha256.Sum256([]byte(got))
		if token == "" || !strings.EqualFold(scheme, "Bearer") || subtle.ConstantTimeCompare(sum[:], want[:]) != 1 {
			return errors.New("bearer token is missing or wrong")
		}
		return nil
	}
}

// Package durable lets the library tell a client that it is going to rely on
// what the client lists. A context carries the word through whatever wraps the
// client.
package durable

import "context"

type key struct{}

// Listing returns a context for a listing whose caller takes what is listed for
// durable: it goes on behind it, or deletes what it makes superfluous. A file
// that a process wrote just before it was killed is listed, but a power loss
// could still take its name.
func Listing(ctx context.Context) context.Context { return context.WithValue(ctx, key{}, true) }

// IsListing reports whether ctx comes from Listing: what is listed must be made
// durable first.
func IsListing(ctx context.Context) bool { return ctx.Value(key{}) != nil }

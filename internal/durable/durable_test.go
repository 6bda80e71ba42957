package durable

import (
	"context"
	"testing"
)

func TestListing(t *testing.T) {
	if IsListing(context.Background()) {
		t.Error("a context is one of Listing without having been made by it")
	}
	parent, cancel := context.WithCancel(context.Background())
	ctx := Listing(parent)
	child, cancelChild := context.WithCancel(ctx)
	defer cancelChild()
	if !IsListing(ctx) || !IsListing(child) || IsListing(parent) {
		t.Errorf("Listing is %v, its child %v, its parent %v", IsListing(ctx), IsListing(child), IsListing(parent))
	}
	if cancel(); ctx.Err() == nil {
		t.Error("the context does not end with its parent")
	}
}

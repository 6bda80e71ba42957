package replicatest

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"

	"example.com/litestream"
)

func testList(t *testing.T, s *storage, k *kind) {
	want := map[litestream.Pos][]byte{}
	for i, pos := range slices.Backward(k.positions) { // an order of its own
		want[pos] = body(i, 10*i)
		s.mustWrite(t, k, pos, want[pos])
	}
	s.mustHold(t, k, want, "00000000deadbeef")
}

func testListMissing(t *testing.T, s *storage, k *kind) {
	s.mustHold(t, k, nil, gen1, gen2)
	s.mustWrite(t, k, k.at(1), []byte("one"))
	s.mustHold(t, k, map[litestream.Pos][]byte{k.at(1): []byte("one")}, gen2)
}

// What a storage tells page by page, or deletes in portions, is complete.
func testMany(t *testing.T, s *storage, k *kind) {
	n := sizes(1100, 50)
	want := s.mustWriteMany(t, k, n)
	other := at(gen2, k.at(1).Index, k.at(1).Offset)
	s.mustWrite(t, k, other, []byte("stays"))
	s.mustHold(t, k, want)
	if err := s.client.DeleteGeneration(t.Context(), gen1); err != nil {
		t.Errorf("delete a generation of %d objects: %v", n, err)
	}
	s.mustHold(t, k, map[litestream.Pos][]byte{other: []byte("stays")}, gen1)
}

// mustWriteMany stores n objects in gen1.
func (s *storage) mustWriteMany(t testing.TB, k *kind, n int) map[litestream.Pos][]byte {
	t.Helper()
	want, next := map[litestream.Pos][]byte{}, make(chan litestream.Pos, n)
	for i := range n {
		pos := k.at(i)
		want[pos] = fmt.Appendf(nil, "object %d", i)
		next <- pos
	}
	close(next)
	var writers sync.WaitGroup
	for range 16 {
		writers.Go(func() {
			for pos := range next {
				if _, err := k.write(t.Context(), s.client, pos, bytes.NewReader(want[pos])); err != nil {
					t.Errorf("write %s: %v", describe(pos), err)
				}
			}
		})
	}
	writers.Wait()
	return want
}

// An object is as old as it is, not as old as the listing.
func testListTwice(t *testing.T, s *storage, k *kind) {
	for _, pos := range k.positions {
		s.mustWrite(t, k, pos, body(1, 10))
	}
	first, err := list(t.Context(), s.client, k, gen1)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range s.clients() {
		again, err := list(t.Context(), c, k, gen1)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.EqualFunc(first, again, func(a, b object) bool {
			return a.pos == b.pos && a.size == b.size && a.createdAt.Equal(b.createdAt)
		}) {
			t.Errorf("two listings of the same:\n%v\n%v", clip(first), clip(again))
		}
	}
}

func mustIterate(t testing.TB, ctx context.Context, s *storage, k *kind) iterator {
	t.Helper()
	itr, err := k.iterate(ctx, s.client, gen1)
	if err != nil {
		t.Fatal(err)
	}
	return itr
}

func testListIterator(t *testing.T, s *storage, k *kind) {
	empty := mustIterate(t, t.Context(), s, k)
	if empty.Next() || empty.Err() != nil || empty.Close() != nil {
		t.Errorf("iterator over nothing: %v", empty.Err())
	}
	const n = 5
	for i := range n {
		s.mustWrite(t, k, k.at(i), []byte("x"))
	}
	a, b := mustIterate(t, t.Context(), s, k), mustIterate(t, t.Context(), s, k)
	for i := range n {
		if !a.Next() || !b.Next() {
			t.Fatalf("an iteration ended after %d of %d: %v, %v", i, n, a.Err(), b.Err())
		}
		if o := a.object(); o != a.object() {
			t.Errorf("the same element of an iteration: %v, %v", o, a.object())
		}
	}
	for range 2 {
		if a.Next() || a.Err() != nil {
			t.Errorf("the iteration goes on behind its end, or ends with error %v", a.Err())
		}
	}
	early := mustIterate(t, t.Context(), s, k)
	if !early.Next() {
		t.Errorf("no first element: %v", early.Err())
	}
	unused := mustIterate(t, t.Context(), s, k)
	for what, itr := range map[string]iterator{"at its end": a, "behind the last element": b, "early": early, "unused": unused} {
		for i := range 2 {
			if err := itr.Close(); err != nil {
				t.Errorf("iterator %s: close %d: %v", what, i+1, err)
			}
			if itr.Next() {
				t.Errorf("iterator %s: goes on after close %d", what, i+1)
			}
		}
	}
}

func testListCancelled(t *testing.T, s *storage, k *kind) {
	const n = 20
	for i := range n {
		s.mustWrite(t, k, k.at(i), []byte("x"))
	}
	for what, ended := range endedContexts(t) {
		_, err := list(ended, s.client, k, gen1)
		mustMatchContext(t, "list", what, ended, err)
		_, err = s.client.Generations(ended)
		mustMatchContext(t, "Generations", what, ended, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	itr := mustIterate(t, ctx, s, k)
	seen := 0
	for ; itr.Next(); seen++ {
		cancel()
	}
	if itr.Err() == nil && seen != n {
		t.Errorf("cancelled during an iteration: it ends after %d of %d without an error", seen, n)
	}
	itr.Close() // an error is as good as none
}

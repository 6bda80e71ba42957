package replicatest

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	"example.com/litestream"
)

func testType(t *testing.T, s *storage) {
	first := s.client.Type()
	if first == "" {
		t.Error("the type is empty")
	}
	s.mustWrite(t, segments, at(gen1, 0, 0), []byte("x"))
	if got := s.other.Type(); got != first {
		t.Errorf("the type was %q, and is %q", first, got)
	}
}

func (s *storage) mustHaveGenerations(t testing.TB, want ...string) {
	t.Helper()
	slices.Sort(want)
	for i, c := range s.clients() {
		got, err := c.Generations(t.Context())
		if err != nil {
			t.Errorf("client %d: generations: %v", i+1, err)
		}
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("client %d: %d generations %q, want %d: %q", i+1, len(got), clip(got), len(want), clip(want))
		}
	}
}

func testGenerations(t *testing.T, s *storage) {
	s.mustHaveGenerations(t)
	s.mustWrite(t, segments, at(gen2, 7, 0), []byte("a segment alone"))
	s.mustHaveGenerations(t, gen2)
	s.mustWrite(t, snapshots, at(gen1, 7, 0), []byte("a snapshot alone"))
	s.mustHaveGenerations(t, gen2, gen1)
	for i := range 3 {
		s.mustWrite(t, snapshots, at(gen3, i, 0), nil)
		s.mustWrite(t, segments, at(gen3, i, 0), nil)
	}
	s.mustHaveGenerations(t, gen2, gen1, gen3)
}

func testManyGenerations(t *testing.T, s *storage) {
	var want []string
	for i := range sizes(1100, 30) {
		name := fmt.Sprintf("%016x", uint64(i)*0x9e3779b97f4a7c15)
		want = append(want, name)
	}
	next := make(chan string, len(want))
	for _, name := range want {
		next <- name
	}
	close(next)
	done := make(chan error)
	const writers = 16
	for range writers {
		go func() {
			var err error
			for name := range next {
				if _, e := snapshots.write(t.Context(), s.client, at(name, 0, 0), bytes.NewReader([]byte(name))); e != nil {
					err = e
				}
			}
			done <- err
		}()
	}
	for range writers {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	s.mustHaveGenerations(t, want...)
}

func testSnapshotsAreNotSegments(t *testing.T, s *storage) {
	pos := at(gen1, 5, 0)
	s.mustWrite(t, snapshots, pos, []byte("snapshot"))
	s.mustHold(t, segments, nil, gen1)
	s.mustWrite(t, segments, pos, []byte("the segment"))
	both := func() {
		t.Helper()
		s.mustHold(t, snapshots, map[litestream.Pos][]byte{pos: []byte("snapshot")})
		s.mustHold(t, segments, map[litestream.Pos][]byte{pos: []byte("the segment")})
	}
	both()
	if err := segments.remove(t.Context(), s.client, pos); err != nil {
		t.Error(err)
	}
	s.mustHold(t, snapshots, map[litestream.Pos][]byte{pos: []byte("snapshot")})
	s.mustHold(t, segments, nil, gen1)
	s.mustWrite(t, segments, pos, []byte("the segment"))
	both()
	if err := snapshots.remove(t.Context(), s.client, pos); err != nil {
		t.Error(err)
	}
	s.mustHold(t, snapshots, nil, gen1)
	s.mustHold(t, segments, map[litestream.Pos][]byte{pos: []byte("the segment")})
}

package replicatest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"example.com/litestream"
)

// mustOpen returns a reader of what is stored at pos.
func mustOpen(t testing.TB, ctx context.Context, c litestream.ReplicaClient, k *kind, pos litestream.Pos) io.ReadCloser {
	t.Helper()
	rc, err := k.open(ctx, c, pos)
	if err != nil {
		t.Fatalf("read %s of %s: %v", k.name, describe(pos), err)
	}
	return rc
}

func testRead(t *testing.T, s *storage, k *kind) {
	pos, data := k.at(1), body(1, 100_000)
	s.mustWrite(t, k, pos, data)
	s.mustWrite(t, k, k.at(2), []byte("another"))

	for what, wrap := range map[string]func(io.Reader) io.Reader{
		"in small pieces": func(r io.Reader) io.Reader { return io.MultiReader(io.LimitReader(iotest.OneByteReader(r), 1000), r) },
		"half a buffer":   iotest.HalfReader,
	} {
		rc := mustOpen(t, t.Context(), s.client, k, pos)
		got, err := io.ReadAll(wrap(rc))
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("read %s: %s, %v", what, difference(got, data), err)
		}
		for range 2 {
			if n, err := rc.Read(make([]byte, 10)); n != 0 || err != io.EOF {
				t.Errorf("read behind the end: %d, %v, want io.EOF", n, err)
			}
		}
		if err := rc.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}

	// Two readers at a time do not disturb each other, nor one that is closed
	// before its end.
	a, b := mustOpen(t, t.Context(), s.client, k, pos), mustOpen(t, t.Context(), s.other, k, pos)
	early := mustOpen(t, t.Context(), s.client, k, pos)
	if _, err := io.ReadFull(early, make([]byte, 10)); err != nil {
		t.Error(err)
	}
	within(t, "close before the end", func() {
		if err := early.Close(); err != nil {
			t.Errorf("close before the end: %v", err)
		}
	})
	var gotA, gotB bytes.Buffer
	for {
		n, errA := io.CopyN(&gotA, a, 777)
		m, errB := io.CopyN(&gotB, b, 7777)
		if n == 0 && m == 0 {
			if errA != io.EOF || errB != io.EOF {
				t.Errorf("read: %v, %v", errA, errB)
			}
			break
		}
	}
	if err := errors.Join(a.Close(), b.Close()); err != nil {
		t.Errorf("close: %v", err)
	}
	for _, got := range [][]byte{gotA.Bytes(), gotB.Bytes()} {
		if !bytes.Equal(got, data) {
			t.Errorf("read beside another reader: %s", difference(got, data))
		}
	}
}

func testReadMissing(t *testing.T, s *storage, k *kind) {
	missing := func(what string, pos litestream.Pos) {
		t.Helper()
		for _, c := range s.clients() {
			if _, err := read(t.Context(), c, k, pos); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s: error is %v, want one that matches os.ErrNotExist", what, err)
			}
		}
	}
	missing("an empty storage", k.at(1))
	s.mustWrite(t, k, k.at(1), []byte("one"))
	missing("another of the generation", k.at(2))
	missing("another generation", at(gen2, k.at(1).Index, k.at(1).Offset))
	missing("the highest number", k.highest)
	if err := k.remove(t.Context(), s.client, k.at(1)); err != nil {
		t.Fatal(err)
	}
	missing("deleted", k.at(1))
}

// A reader gives one body or an error, whatever becomes of the object.
func testReadWhileReplaced(t *testing.T, s *storage, k *kind) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows does not replace a file that is open")
	}
	pos, old := k.at(1), body(1, 3<<20)
	for what, change := range map[string]func() error{
		"replaced": func() error {
			_, err := k.write(t.Context(), s.client, pos, bytes.NewReader(body(2, 2<<20)))
			return err
		},
		"deleted":            func() error { return k.remove(t.Context(), s.client, pos) },
		"deleted as a whole": func() error { return s.client.DeleteGeneration(t.Context(), pos.Generation) },
	} {
		s.mustWrite(t, k, pos, old)
		rc := mustOpen(t, t.Context(), s.other, k, pos)
		got := make([]byte, 10)
		if _, err := io.ReadFull(rc, got); err != nil {
			t.Fatal(err)
		}
		var err error
		within(t, what+" while it is read", func() { err = change() })
		if err != nil {
			t.Errorf("%s while it is read: %v", what, err)
		}
		rest, err := io.ReadAll(rc)
		if got = append(got, rest...); err == nil && !bytes.Equal(got, old) {
			t.Errorf("%s while it is read: no error, and neither the old bytes nor all: %s", what, difference(got, old))
		}
		if err := rc.Close(); err != nil {
			t.Logf("%s while it is read: close: %v", what, err)
		}
	}
}

func testReadCancelled(t *testing.T, s *storage, k *kind) {
	pos, data := k.at(1), body(1, 3<<20)
	s.mustWrite(t, k, pos, data)
	for what, ended := range endedContexts(t) {
		_, err := read(ended, s.client, k, pos)
		mustMatchContext(t, "read", what, ended, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	rc := mustOpen(t, ctx, s.client, k, pos)
	got := make([]byte, 10)
	if _, err := io.ReadFull(rc, got); err != nil {
		t.Fatal(err)
	}
	cancel()
	var err error
	within(t, "read on after the context ended", func() {
		var rest []byte
		rest, err = io.ReadAll(rc)
		got = append(got, rest...)
	})
	if err == nil && !bytes.Equal(got, data) {
		t.Errorf("cancelled while it is read: no error, and not all bytes: %s", difference(got, data))
	}
	within(t, "close after the context ended", func() { rc.Close() }) // an error is as good as none
}

func testHighestNumbers(t *testing.T, s *storage, k *kind) {
	want := map[litestream.Pos][]byte{k.highest: body(1, 100), k.at(0): body(2, 100)}
	for pos, data := range want {
		s.mustWrite(t, k, pos, data).check(t, pos, len(data))
	}
	s.mustHold(t, k, want)
	if err := k.remove(t.Context(), s.client, k.highest); err != nil {
		t.Error(err)
	}
	delete(want, k.highest)
	s.mustHold(t, k, want)
}

// invalidGenerations are not 16 lowercase hex digits.
var invalidGenerations = []string{
	"", ".", "..", "../x", "/", `\`, "../" + gen1, gen1 + "/..", gen1 + "/", "/" + gen1, gen1[:15], gen1 + "0",
	strings.ToUpper(gen1), "../../0123456789", "0123456789abcde/", `0123456789abcde\`, "0123456789abcdeg", "zzzzzzzzzzzzzzzz",
	"0123456789abcde\x00", "0123456789abcde ", "0123456789abcde\n", "+123456789abcdef", "0x23456789abcdef",
	"\uff10123456789abc", "*", "%2e%2e", strings.Repeat("0", 1000),
}

func testInvalidNames(t *testing.T, s *storage, k *kind) {
	want := map[litestream.Pos][]byte{k.at(0): body(1, 10), k.at(1): body(2, 10)}
	for pos, data := range want {
		s.mustWrite(t, k, pos, data)
	}
	var bad []litestream.Pos
	for _, g := range invalidGenerations {
		bad = append(bad, at(g, k.at(1).Index, k.at(1).Offset))
	}
	for _, n := range []int{-1, -maxInt - 1} {
		bad = append(bad, at(gen1, n, 0))
	}
	if k.highest.Offset > 0 {
		bad = append(bad, at(gen1, 0, -1), at(gen1, 0, -maxInt64-1))
	}
	for _, pos := range bad {
		refused := func(method string, err error) {
			t.Helper()
			if err == nil {
				t.Errorf("%s of %s: no error", method, describe(pos))
			} else if errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s of %s is looked for, not refused: %v", method, describe(pos), err)
			}
		}
		_, err := k.write(t.Context(), s.client, pos, strings.NewReader("x"))
		refused("write", err)
		_, err = read(t.Context(), s.client, k, pos)
		refused("read", err)
		refused("delete", k.remove(t.Context(), s.client, pos))
		if pos.Generation != gen1 {
			_, err := list(t.Context(), s.client, k, pos.Generation)
			refused("list", err)
			refused("DeleteGeneration", s.client.DeleteGeneration(t.Context(), pos.Generation))
		}
		if k == segments {
			refused("DeleteWALSegments, behind a valid one,", s.client.DeleteWALSegments(t.Context(), []litestream.Pos{k.at(1), pos}))
			delete(want, k.at(1)) // deleted or not
		}
	}
	if k == segments {
		if err := k.remove(t.Context(), s.client, k.at(1)); err != nil {
			t.Error(err)
		}
	}
	s.mustHold(t, k, want)
	if names, err := s.client.Generations(t.Context()); err != nil || fmt.Sprint(names) != "["+gen1+"]" {
		t.Errorf("generations %q, %v", names, err)
	}
}

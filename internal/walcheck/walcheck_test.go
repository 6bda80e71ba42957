package walcheck

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"example.com/litestream/internal/fakeapp"

	"github.com/pierrec/lz4/v4"
)

func compress(t *testing.T, b []byte) []byte {
	t.Helper()
	var z bytes.Buffer
	w := lz4.NewWriter(&z)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return z.Bytes()
}

const pageSize = 512

// sound returns three WALs of five commits each, and segments that tile them:
// one for the header and the first commit, then one for each.
func sound(t *testing.T) (wals [][]byte, segments []Segment) {
	t.Helper()
	app, err := fakeapp.New(filepath.Join(t.TempDir(), "db-wal"), pageSize, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer app.Close()
	for index := range 3 {
		offset := 0
		for n := range 5 {
			if err := app.Write(2, 1, uint64(n)); err != nil {
				t.Fatal(err)
			}
			if err := app.Commit(3, uint64(n)); err != nil {
				t.Fatal(err)
			}
			b := app.Committed(index)[offset:]
			segments = append(segments, Segment{Index: index, Offset: int64(offset), Data: compress(t, b)})
			offset += len(b)
		}
		wals = append(wals, app.Committed(index))
		app.Restart()
	}
	return wals, segments
}

func TestGenerationFindsWhatIsBroken(t *testing.T) {
	wals, _ := sound(t)
	const frame = 24 + pageSize
	without := func(segments []Segment, i, n int) []Segment { return slices.Delete(segments, i, i+n) }
	part := func(index, from, to int) Segment {
		return Segment{Index: index, Offset: int64(from), Data: compress(t, wals[index][from:to])}
	}
	end := len(wals[2])
	for _, test := range []struct {
		name  string
		from  int // index of the oldest snapshot
		spoil func(segments []Segment) []Segment
		want  string // in the error; "" for none
	}{
		{"sound", 0, func(s []Segment) []Segment { return s }, ""},
		{"sound, in any order", 0, func(s []Segment) []Segment { slices.Reverse(s); return s }, ""},
		{"sound, from index 1", 1, func(s []Segment) []Segment { return s }, ""},
		{"what is older than the snapshot does not count", 1, func(s []Segment) []Segment { return without(s, 0, 3) }, ""},
		{"nothing captured yet", 0, func(s []Segment) []Segment { return nil }, ""},
		{"first dropped", 0, func(s []Segment) []Segment { return without(s, 0, 1) }, "0/0x668: the one before ends at 0x0"},
		{"one dropped", 0, func(s []Segment) []Segment { return without(s, 7, 1) }, "the one before ends at"},
		{"index dropped", 0, func(s []Segment) []Segment { return without(s, 5, 5) }, "index 0 is missing"},
		{"index of the snapshot dropped", 0, func(s []Segment) []Segment { return without(s, 0, 5) }, "index 0 is missing"},
		{"gap of a frame", 0, func(s []Segment) []Segment {
			return append(without(s, 14, 1), part(2, end-2*frame, end))
		}, "the one before ends at"},
		{"overlap", 0, func(s []Segment) []Segment {
			return append(s, part(2, end-4*frame, end))
		}, "the one before ends at"},
		{"doubled", 0, func(s []Segment) []Segment { return append(s, s[8]) }, "the one before ends at"},
		{"ends inside a transaction", 0, func(s []Segment) []Segment {
			return append(without(s, 14, 1), part(2, end-3*frame, end-frame))
		}, "does not end with a commit"},
		{"ends inside a frame", 0, func(s []Segment) []Segment {
			return append(without(s, 14, 1), part(2, end-3*frame, end-1))
		}, "is cut"},
		{"two frames in a file", 0, func(s []Segment) []Segment {
			a, b := part(2, end-3*frame, end-2*frame), part(2, end-2*frame, end)
			a.Data = append(a.Data, b.Data...)
			return append(without(s, 14, 1), a)
		}, "LZ4 frame ends at byte"},
		{"bytes behind the frame", 0, func(s []Segment) []Segment {
			s[14].Data = append(s[14].Data, 0)
			return s
		}, "unexpected EOF"},
		{"cut short", 0, func(s []Segment) []Segment {
			s[14].Data = s[14].Data[:len(s[14].Data)-9]
			return s
		}, "segment 2/"},
		{"emptied", 0, func(s []Segment) []Segment { s[3].Data = nil; return s }, "not an LZ4 frame"},
		{"page flipped", 0, func(s []Segment) []Segment {
			b := bytes.Clone(wals[2])
			b[end-9] ^= 1
			s[14].Data = compress(t, b[end-3*frame:])
			return s
		}, "frame 14 has a wrong checksum"},
		{"salts of another wal", 0, func(s []Segment) []Segment {
			s[14].Data = compress(t, wals[1][end-3*frame:])
			return s
		}, "other salts"},
		{"header flipped", 0, func(s []Segment) []Segment {
			b := bytes.Clone(wals[0][:32+3*frame])
			b[13] ^= 1
			s[0].Data = compress(t, b)
			return s
		}, "wal header has a wrong checksum"},
		{"the same wal twice", 0, func(s []Segment) []Segment {
			for i := range 5 {
				s[5+i].Data = s[i].Data
			}
			return s
		}, "the same wal"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, segments := sound(t)
			got, err := Generation([]int{test.from, 9}, test.spoil(segments))
			if test.want != "" {
				if err == nil || !strings.Contains(err.Error(), test.want) {
					t.Fatalf("error %v, want one that says %q", err, test.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			for index, b := range got {
				if index < test.from || !bytes.Equal(b, wals[index]) {
					t.Errorf("index %d has %d bytes, want %d", index, len(b), len(wals[index]))
				}
			}
		})
	}
	if _, err := Generation(nil, nil); err == nil {
		t.Error("a generation without a snapshot is sound")
	}
}

// writeMeta writes a sound meta directory with the last two indexes.
func writeMeta(t *testing.T) (dir string, put func(name, content string)) {
	t.Helper()
	dir = t.TempDir()
	put = func(name, content string) {
		t.Helper()
		path := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	wals, segments := sound(t)
	for _, s := range segments[5:] {
		put(shadowName(s.Index, s.Offset), string(s.Data))
	}
	put("generations/"+testGeneration+"/ends", ends(1, len(wals[1])))
	put("lock", "process 1")
	put("generation", testGeneration+"\n")
	put("position", fmt.Sprintf("%s/0000000000000002:%016x\n", testGeneration, len(wals[2])))
	return dir, put
}

// ends is an ends file with one slot.
func ends(index, end int) string {
	b := make([]byte, 16*index)
	b = binary.BigEndian.AppendUint64(b, uint64(index))
	return string(binary.BigEndian.AppendUint64(b, uint64(end)))
}

const testGeneration = "00112233445566ff"

func shadowName(index int, offset int64) string {
	return fmt.Sprintf("generations/%s/wal/%016x/%016x.wal.lz4", testGeneration, index, offset)
}

func TestMetaDirFindsWhatIsBroken(t *testing.T) {
	for _, test := range []struct {
		name  string
		spoil func(t *testing.T, dir string, put func(name, content string))
		want  string
	}{
		{"sound", func(t *testing.T, dir string, put func(string, string)) {}, ""},
		{"absent", func(t *testing.T, dir string, put func(string, string)) { remove(t, dir, "") }, ""},
		{"never captured", func(t *testing.T, dir string, put func(string, string)) {
			remove(t, dir, "generation")
			remove(t, dir, "generations")
			remove(t, dir, "position")
		}, ""},
		{"wal was empty", func(t *testing.T, dir string, put func(string, string)) {
			remove(t, dir, "generations/"+testGeneration+"/wal")
			if err := os.Mkdir(filepath.Join(dir, "generations", testGeneration, "wal"), 0o700); err != nil {
				t.Fatal(err)
			}
			put("position", testGeneration+"/0000000000000000:0000000000000000\n")
		}, ""},
		{"marker names a missing generation", func(t *testing.T, dir string, put func(string, string)) {
			remove(t, dir, "generations/"+testGeneration)
		}, "which is not in"},
		{"marker is torn", func(t *testing.T, dir string, put func(string, string)) { put("generation", testGeneration[:9]) }, "generation marker holds"},
		{"marker is empty", func(t *testing.T, dir string, put func(string, string)) { put("generation", "") }, "generation marker holds"},
		{"marker is gone", func(t *testing.T, dir string, put func(string, string)) { remove(t, dir, "generation") }, "is left"},
		{"another generation is left", func(t *testing.T, dir string, put func(string, string)) {
			put("generations/ffffffffffffffff/wal/x", "")
		}, "is left"},
		{"unfinished file", func(t *testing.T, dir string, put func(string, string)) { put("generation.1-1.tmp", "") }, "does not belong"},
		{"unfinished segment", func(t *testing.T, dir string, put func(string, string)) {
			put(shadowName(2, 0)+".1-1.tmp", "")
		}, "does not belong"},
		{"unknown directory", func(t *testing.T, dir string, put func(string, string)) {
			put("generations/"+testGeneration+"/wal/x/y", "")
		}, "does not belong"},
		{"segment dropped", func(t *testing.T, dir string, put func(string, string)) {
			remove(t, dir, shadowName(1, 0))
		}, "the one before ends at 0x0"},
		{"index dropped", func(t *testing.T, dir string, put func(string, string)) {
			put(shadowName(4, 0), "x")
		}, "index 2 is missing"},
		{"segment is torn", func(t *testing.T, dir string, put func(string, string)) { put(shadowName(2, 0), "\x04\x22") }, "not an LZ4 frame"},
		{"end of an older index is not noted", func(t *testing.T, dir string, put func(string, string)) {
			remove(t, dir, "generations/"+testGeneration+"/ends")
		}, "the ends file notes"},
		{"an older index has another end", func(t *testing.T, dir string, put func(string, string)) {
			put("generations/"+testGeneration+"/ends", ends(1, 32))
		}, "the ends file notes 32"},
		{"unknown file in a generation", func(t *testing.T, dir string, put func(string, string)) {
			put("generations/"+testGeneration+"/x", "")
		}, "does not belong"},
		{"position is old", func(t *testing.T, dir string, put func(string, string)) {
			put("position", testGeneration+"/0000000000000002:0000000000000020\n")
		}, "position file holds"},
		{"position is gone", func(t *testing.T, dir string, put func(string, string)) { remove(t, dir, "position") }, "position file holds"},
		{"position without a generation", func(t *testing.T, dir string, put func(string, string)) {
			remove(t, dir, "generation")
			remove(t, dir, "generations")
		}, "position file holds"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir, put := writeMeta(t)
			test.spoil(t, dir, put)
			m, err := MetaDir(dir)
			switch {
			case test.want != "":
				if err == nil || !strings.Contains(err.Error(), test.want) {
					t.Errorf("error %v, want one that says %q", err, test.want)
				}
			case err != nil:
				t.Error(err)
			case test.name == "sound" && (m.Generation != testGeneration || len(m.WALs) != 2):
				t.Errorf("got generation %q with %d indexes", m.Generation, len(m.WALs))
			}
		})
	}
}

func remove(t *testing.T, dir, name string) {
	t.Helper()
	if err := os.RemoveAll(filepath.Join(dir, filepath.FromSlash(name))); err != nil {
		t.Fatal(err)
	}
}

func TestAgree(t *testing.T) {
	a := map[int][]byte{1: []byte("abc"), 2: []byte("def")}
	for _, test := range []struct {
		b    map[int][]byte
		same bool
	}{
		{nil, true},
		{map[int][]byte{2: []byte("defghi"), 3: []byte("x")}, true},
		{map[int][]byte{1: []byte("a")}, true},
		{map[int][]byte{1: []byte("abc"), 2: []byte("dex")}, false},
	} {
		if err := Agree(a, test.b); (err == nil) != test.same {
			t.Errorf("%v: %v", test.b, err)
		}
	}
}

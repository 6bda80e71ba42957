package walcheck

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// Meta is what the meta directory of a database holds.
type Meta struct {
	Generation string         // in the marker; "" without one
	WALs       map[int][]byte // captured, by index
}

var (
	generationName = regexp.MustCompile(`^[0-9a-f]{16}$`)
	indexName      = regexp.MustCompile(`^[0-9a-f]{16}$`)
	segmentName    = regexp.MustCompile(`^([0-9a-f]{16})\.wal\.lz4$`)
)

// MetaDir checks the meta directory of a database that is closed: the marker
// names a generation that is there (I6), no other is left, its captured WAL is
// as Generation wants it, the position file names its end, and nothing is there
// that does not belong. A directory that does not exist is as good as empty.
func MetaDir(dir string) (m Meta, err error) {
	ents, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return m, nil
	} else if err != nil {
		return m, err
	}
	var marker, position []byte
	follower := false // the position is in the upstream's history
	for _, ent := range ents {
		path := filepath.Join(dir, ent.Name())
		switch ent.Name() {
		case "generation":
			marker, err = os.ReadFile(path)
		case "position":
			position, err = os.ReadFile(path)
		case "follower":
			follower = true
		case "generations", "lock", "lineage":
		default:
			err = fmt.Errorf("%s does not belong in the meta directory", path)
		}
		if err != nil {
			return m, err
		}
	}
	name, ok := strings.CutSuffix(string(marker), "\n")
	if marker != nil && (!ok || !generationName.MatchString(name)) {
		return m, fmt.Errorf("generation marker holds %q", marker)
	}
	m.Generation = name
	if err := onlyGeneration(filepath.Join(dir, "generations"), name); err != nil {
		return m, err
	}
	end := ""
	if name != "" {
		segments, err := readShadow(filepath.Join(dir, "generations", name, "wal"))
		if err != nil {
			return m, err
		}
		newest := 0
		if len(segments) > 0 {
			if m.WALs, err = Generation([]int{segments[0].Index}, segments); err != nil {
				return m, fmt.Errorf("shadow wal of %s: %w", name, err)
			}
			newest = segments[len(segments)-1].Index
		}
		if err := checkEnds(filepath.Join(dir, "generations", name), m.WALs, newest); err != nil {
			return m, err
		}
		end = fmt.Sprintf("%s/%016x:%016x\n", name, newest, len(m.WALs[newest]))
	}
	if string(position) != end && !follower {
		return m, fmt.Errorf("position file holds %q, want %q", position, end)
	}
	return m, nil
}

// onlyGeneration checks that dir holds the generation of that name, and
// nothing else; without a name, nothing at all.
func onlyGeneration(dir, name string) error {
	ents, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	found := false
	for _, ent := range ents {
		if ent.Name() != name || !ent.IsDir() {
			return fmt.Errorf("%s is left; the generation is %q", filepath.Join(dir, ent.Name()), name)
		}
		found = true
	}
	if name != "" && !found {
		return fmt.Errorf("generation marker names %s, which is not in %s", name, dir)
	}
	return nil
}

// checkEnds checks that a generation's ends file notes how long each WAL was
// before the newest, in a ring of 4,096 pairs of index and length, and that
// nothing else is beside the captured WAL.
func checkEnds(dir string, wals map[int][]byte, newest int) error {
	ents, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, ent := range ents {
		if ent.Name() != "wal" && ent.Name() != "ends" {
			return fmt.Errorf("%s does not belong in a generation", filepath.Join(dir, ent.Name()))
		}
	}
	ends, err := os.ReadFile(filepath.Join(dir, "ends"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for index, wal := range wals {
		if index == newest {
			continue
		}
		slot := make([]byte, 16)
		copy(slot, ends[min(len(ends), index%4096*16):])
		if i, end := binary.BigEndian.Uint64(slot), binary.BigEndian.Uint64(slot[8:]); i != uint64(index) || end != uint64(len(wal)) {
			return fmt.Errorf("index %d has %d bytes, the ends file notes %d for %d", index, len(wal), end, i)
		}
	}
	return nil
}

// readShadow reads the segments below a generation's WAL directory, in the
// order of their names.
func readShadow(dir string) (segments []Segment, err error) {
	indexes, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, ent := range indexes {
		path := filepath.Join(dir, ent.Name())
		if !indexName.MatchString(ent.Name()) {
			return nil, fmt.Errorf("%s does not belong in the shadow wal", path)
		}
		index, err := strconv.ParseInt(ent.Name(), 16, 64)
		if err != nil {
			return nil, err
		}
		files, err := os.ReadDir(path)
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			name := segmentName.FindStringSubmatch(file.Name())
			if name == nil {
				return nil, fmt.Errorf("%s does not belong in the shadow wal", filepath.Join(path, file.Name()))
			}
			offset, err := strconv.ParseInt(name[1], 16, 64)
			if err != nil {
				return nil, err
			}
			b, err := os.ReadFile(filepath.Join(path, file.Name()))
			if err != nil {
				return nil, err
			}
			segments = append(segments, Segment{Index: int(index), Offset: offset, Data: b})
		}
	}
	return segments, nil
}

// Agree checks that two copies of one generation do not differ where both have
// an index: one of them may only be shorter.
func Agree(a, b map[int][]byte) error {
	for index, x := range a {
		y, ok := b[index]
		n := min(len(x), len(y))
		if ok && !bytes.Equal(x[:n], y[:n]) {
			return fmt.Errorf("index %d: two copies differ within their first %d bytes", index, n)
		}
	}
	return nil
}

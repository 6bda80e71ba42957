package litestream

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"example.com/litestream/internal/atomicfile"
)

// prune removes the indexes before keep from the list and from disk. What it
// fails to remove is tried again by the next call.
func (s *shadowWAL) prune(keep int) error {
	s.mu.Lock()
	generation := s.mu.generation
	n := 0
	for n < len(s.mu.indexes) && s.mu.indexes[n].index < keep {
		n++
	}
	gone := s.mu.indexes[:n]
	s.mu.indexes = slices.Clone(s.mu.indexes[n:])
	s.mu.Unlock()
	for _, idx := range gone {
		s.rubbish = append(s.rubbish, s.meta.indexDir(generation, idx.index))
	}
	return s.removeRubbish()
}

// removeRubbish removes the directories that are of no use, all it can.
func (s *shadowWAL) removeRubbish() error {
	var errs []error
	s.rubbish = slices.DeleteFunc(s.rubbish, func(dir string) bool {
		err := atomicfile.RemoveAll(s.fs, dir)
		errs = append(errs, err)
		return err == nil
	})
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("prune shadow wal: %w", err)
	}
	return nil
}

// removeOthers removes every generation but one, and what a crash left. What it
// fails to remove is tried again by the next prune.
func (s *shadowWAL) removeOthers(current string) error {
	ents, err := s.fs.ReadDir(s.meta.generations())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("remove old generations: %w", err)
	}
	for _, ent := range ents {
		dir := s.meta.generation(ent.Name())
		if IsGenerationName(ent.Name()) && ent.Name() != current && !slices.Contains(s.rubbish, dir) {
			s.rubbish = append(s.rubbish, dir)
		}
	}
	return s.removeRubbish()
}
